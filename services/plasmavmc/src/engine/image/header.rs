//! Reading foreign images before QEMU does. qcow2 as in QEMU's docs/interop/qcow2.txt, versions 2 and 3.
//!
//! The whole mapping is walked, not only the header: every table lies inside the file, no cluster is
//! used twice, and so a small file cannot become a huge one, apart from compression, which is bounded.

use super::{Format, read_at};
use photon_base::{Bytes, Error, Result};
use std::fs::File;

/// What may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest disk that a guest sees.
    pub size: Bytes,
    /// Most content in it, holes not counted.
    pub content: Bytes,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { size: Bytes::gib(2048), content: Bytes::gib(256) }
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Size that a guest sees, whole sectors.
    pub size: Bytes,
    /// Content, holes not counted; for raw files the size.
    pub content: Bytes,
}

const SECTOR: u64 = 512;
const QCOW2: &[u8] = b"QFI\xfb";
/// Other containers, which as raw disks would only be a mistake: magic, its place, its name.
const OTHERS: [(&[u8], usize, &str); 10] = [
    (b"KDMV", 0, "a VMDK"),
    (b"COWD", 0, "a VMDK"),
    (b"# Disk DescriptorFile", 0, "a VMDK descriptor"),
    (b"conectix", 0, "a VHD"),
    (b"vhdxfile", 0, "a VHDX"),
    (b"QED\0", 0, "a QED"),
    (b"\x7f\x10\xda\xbe", 64, "a VDI"),
    (b"\x1f\x8b", 0, "a gzip file"),
    (b"\xfd7zXZ", 0, "an xz file"),
    (b"\x28\xb5\x2f\xfd", 0, "a zstd file"),
];

fn refuse(what: impl Into<String>) -> Error {
    Error::invalid("image", what)
}

/// Reads `file`, said to be of `format`; refuses what it is not, what points outside itself and what is
/// too large.
pub fn check(file: &File, format: Format, limits: Limits) -> Result<Checked> {
    let len = file.metadata().map_err(|e| Error::internal("cannot read the image").why(e))?.len();
    let head = read_at(file, 0, len.min(128) as usize)?;
    if let Some((_, _, name)) =
        OTHERS.iter().find(|(m, at, _)| head.get(*at..).is_some_and(|h| h.starts_with(m)))
    {
        return Err(refuse(format!("it is {name}; raw and qcow2 are taken"))
            .hint("qemu-img convert -O qcow2 FILE NEW, or unpack it first"));
    }
    let found = match (format, head.starts_with(QCOW2)) {
        (Format::Raw, true) => {
            return Err(refuse("it is a qcow2 image, not a raw one").hint("--format qcow2"));
        }
        (Format::Qcow2, false) => {
            return Err(refuse("it is not a qcow2 image")
                .why("it does not start with QFI")
                .hint("--format raw"));
        }
        (Format::Raw, false) => {
            let size = Bytes(len.next_multiple_of(SECTOR));
            Checked { size, content: size }
        }
        (Format::Qcow2, true) => qcow2(file, len, limits)?,
    };
    if found.size.0 == 0 {
        return Err(refuse("it is empty"));
    }
    if found.size > limits.size || found.content > limits.content {
        let over = format!("{} with {} of content", found.size, found.content);
        return Err(
            refuse("it is too large").why(format!("{over}; at most {} with {}", limits.size, limits.content))
        );
    }
    Ok(found)
}

/// Big-endian fields of a header that is long enough.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
    }
    fn u64(&self, at: usize) -> u64 {
        (u64::from(self.u32(at)) << 32) | u64::from(self.u32(at + 4))
    }
}

/// Tables larger than this are refused by QEMU too.
const L1_BYTES_MAX: u64 = 32 << 20;
const REFCOUNT_BYTES_MAX: u64 = 8 << 20;
const EXTENSIONS_MAX: usize = 64;

fn qcow2(file: &File, len: u64, limits: Limits) -> Result<Checked> {
    let head = read_at(file, 0, len.min(112) as usize)?;
    if head.len() < 72 {
        return Err(refuse("its header is cut short"));
    }
    let f = Fields(&head);
    let version = f.u32(4);
    let (header_len, incompatible) = match version {
        2 => (72, 0),
        3 if head.len() >= 104 => (u64::from(f.u32(100)), f.u64(72)),
        _ => return Err(refuse(format!("qcow2 version {version} is not known, or its header is cut short"))),
    };
    if f.u64(8) != 0 || f.u32(16) != 0 {
        return Err(refuse("it has a backing file").hint("qemu-img convert -O qcow2 FILE WHOLE"));
    }
    if f.u32(32) != 0 {
        return Err(refuse("it is encrypted"));
    }
    if f.u32(60) != 0 {
        return Err(refuse("it has internal snapshots").hint("qemu-img convert -O qcow2 FILE WHOLE"));
    }
    // Bits: 0 refcounts may be stale (not used here), 1 corrupt, 2 external data, 3 compression type,
    // 4 extended L2 entries.
    match incompatible {
        i if i & 0b10 != 0 => return Err(refuse("it is marked corrupt").hint("qemu-img check -r all FILE")),
        i if i & 0b100 != 0 => return Err(refuse("its data is in another file")),
        i if i & !0b11111 != 0 => return Err(refuse("it uses features that are not known")),
        _ => {}
    }
    if version == 3 && (!(104..=4096).contains(&header_len) || !header_len.is_multiple_of(8) || f.u32(96) > 6)
    {
        return Err(refuse("its header does not make sense"));
    }
    let compression = if incompatible & 0b1000 != 0 { head.get(104).copied().unwrap_or(0xff) } else { 0 };
    if compression > 1 {
        return Err(refuse("its compression is neither deflate nor zstd"));
    }
    let bits = f.u32(20);
    if !(9..=21).contains(&bits) {
        return Err(refuse("its cluster size does not make sense"));
    }
    let cluster = 1u64 << bits;
    extensions(file, len, header_len, cluster)?;
    let size = f.u64(24);
    if !size.is_multiple_of(SECTOR) || size > limits.size.0 {
        return Err(refuse(format!(
            "its size of {size} bytes is not whole sectors of at most {}",
            limits.size
        )));
    }
    let entry = if incompatible & 0b10000 != 0 { 16 } else { 8 };
    let map = Map { file, len, cluster, entry, size };
    map.table(f.u64(48), u64::from(f.u32(56)).saturating_mul(cluster), REFCOUNT_BYTES_MAX, "refcount table")?;
    let content = map.walk(f.u64(40), f.u32(36), limits.content.0)?;
    Ok(Checked { size: Bytes(size), content: Bytes(content) })
}

/// Header extensions: a type, a length, data padded to eight bytes; type 0 ends them.
fn extensions(file: &File, len: u64, from: u64, cluster: u64) -> Result<()> {
    let mut at = from;
    for _ in 0..EXTENSIONS_MAX {
        if at + 8 > cluster.min(len) {
            return Ok(()); // version 2 files may end their first cluster without an end mark
        }
        let head = read_at(file, at, 8)?;
        let (kind, size) = (Fields(&head).u32(0), u64::from(Fields(&head).u32(4)));
        match kind {
            0 => return Ok(()),
            0x4441_5441 => return Err(refuse("its data is in another file")),
            0x0537_be77 => return Err(refuse("it is encrypted")),
            // Format of a backing file (there is none), names of features, bitmaps, unknown hints.
            _ => at += 8 + size.next_multiple_of(8),
        }
        if at > cluster {
            return Err(refuse("its header extensions are cut short"));
        }
    }
    Err(refuse("it has too many header extensions"))
}

struct Map<'a> {
    file: &'a File,
    len: u64,
    cluster: u64,
    entry: u64,
    size: u64,
}

impl Map<'_> {
    fn table(&self, at: u64, bytes: u64, max: u64, what: &str) -> Result<()> {
        let end = at.checked_add(bytes);
        if at == 0 || !at.is_multiple_of(self.cluster) || bytes > max || end.is_none_or(|e| e > self.len) {
            return Err(refuse(format!("its {what} is not inside the file")));
        }
        Ok(())
    }

    /// Marks one cluster of the file as used.
    fn take(&self, used: &mut [u64], at: u64) -> Result<()> {
        let i = at / self.cluster;
        if !at.is_multiple_of(self.cluster) || at == 0 || at >= self.len {
            return Err(refuse("it points outside itself"));
        }
        let (word, bit) = ((i / 64) as usize, 1 << (i % 64));
        if used[word] & bit != 0 {
            return Err(refuse("it uses a part of itself twice").hint("qemu-img check FILE"));
        }
        used[word] |= bit;
        Ok(())
    }

    /// Follows every pointer; returns how much content there is.
    fn walk(&self, l1_at: u64, l1_len: u32, content_max: u64) -> Result<u64> {
        const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
        let per_table = self.cluster / self.entry;
        let needed = self.size.div_ceil(self.cluster.saturating_mul(per_table));
        let l1_len = u64::from(l1_len);
        if l1_len < needed {
            return Err(refuse("its first table is too short for its size"));
        }
        if l1_len == 0 {
            return Ok(0);
        }
        self.table(l1_at, l1_len * 8, L1_BYTES_MAX, "first table")?;
        // One bit per cluster of the file: 2 KiB per gigabyte of file at the usual cluster size.
        let mut used = vec![0u64; (self.len / self.cluster / 64 + 1) as usize];
        let l1 = read_at(self.file, l1_at, (needed * 8) as usize)?;
        let mut content = 0u64;
        for i in 0..needed as usize {
            let l2_at = Fields(&l1).u64(i * 8) & OFFSET;
            if l2_at == 0 {
                continue;
            }
            self.take(&mut used, l2_at)?;
            let l2 = read_at(self.file, l2_at, self.cluster as usize)?;
            for j in 0..per_table as usize {
                let word = Fields(&l2).u64(j * self.entry as usize);
                if (word >> 62) & 1 != 0 {
                    // Compressed: the place is a byte, below 62 - (cluster bits - 8) bits; several may
                    // share a cluster. Decompressed it is one cluster.
                    let place = word & ((1 << (62 - (self.cluster.trailing_zeros() - 8))) - 1);
                    if place >= self.len {
                        return Err(refuse("it points outside itself"));
                    }
                    content += self.cluster;
                } else if word & OFFSET != 0 {
                    self.take(&mut used, word & OFFSET)?;
                    content += self.cluster;
                }
                if content > content_max {
                    return Err(
                        refuse("it is too large").why(format!("more than {} of content", Bytes(content_max)))
                    );
                }
            }
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    const CLUSTER: usize = 512;

    /// A sound image of 512-byte clusters: header, refcount table, L1, one L2 with two data clusters.
    fn sound() -> Vec<u8> {
        let mut b = vec![0; 7 * CLUSTER];
        let put = |b: &mut Vec<u8>, at: usize, v: &[u8]| b[at..at + v.len()].copy_from_slice(v);
        put(&mut b, 0, QCOW2);
        put(&mut b, 4, &3u32.to_be_bytes());
        put(&mut b, 20, &9u32.to_be_bytes());
        put(&mut b, 24, &(64 * CLUSTER as u64).to_be_bytes());
        put(&mut b, 36, &1u32.to_be_bytes());
        put(&mut b, 40, &(2 * CLUSTER as u64).to_be_bytes());
        put(&mut b, 48, &(CLUSTER as u64).to_be_bytes());
        put(&mut b, 56, &1u32.to_be_bytes());
        put(&mut b, 96, &4u32.to_be_bytes());
        put(&mut b, 100, &104u32.to_be_bytes());
        put(&mut b, 2 * CLUSTER, &((1 << 63) | (3 * CLUSTER as u64)).to_be_bytes());
        put(&mut b, 3 * CLUSTER, &((1 << 63) | (4 * CLUSTER as u64)).to_be_bytes());
        put(&mut b, 3 * CLUSTER + 8, &((1 << 63) | (5 * CLUSTER as u64)).to_be_bytes());
        b
    }

    fn file(bytes: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!("photon-img-{:x}", photon_rt::entropy::u64()));
        let mut f = photon_rt::fs::OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .expect("file");
        photon_rt::fs::remove_file(&path).expect("unlinked");
        f.write_all(bytes).expect("written");
        f
    }

    fn look(bytes: &[u8]) -> Result<Checked> {
        check(&file(bytes), Format::Qcow2, Limits::default())
    }

    fn with(at: usize, value: &[u8]) -> String {
        let mut b = sound();
        b[at..at + value.len()].copy_from_slice(value);
        look(&b).expect_err("refused").what
    }

    #[test]
    fn a_sound_image_is_taken_and_every_trick_is_refused() {
        let size = Bytes(64 * CLUSTER as u64);
        assert_eq!(look(&sound()), Ok(Checked { size, content: Bytes(2 * CLUSTER as u64) }));
        let far = u64::MAX >> 9 << 9;
        for (at, value, word) in [
            (4, &4u32.to_be_bytes()[..], "version 4"),
            (8, &600u64.to_be_bytes(), "backing file"),
            (16, &5u32.to_be_bytes(), "backing file"),
            (20, &8u32.to_be_bytes(), "cluster size"),
            (20, &63u32.to_be_bytes(), "cluster size"),
            (24, &(1u64 << 62).to_be_bytes(), "whole sectors of at most"),
            (24, &513u64.to_be_bytes(), "whole sectors"),
            (24, &(1u64 << 30).to_be_bytes(), "too short for its size"),
            (32, &2u32.to_be_bytes(), "encrypted"),
            (36, &u32::MAX.to_be_bytes(), "first table is not inside"),
            (40, &far.to_be_bytes(), "first table is not inside"),
            (40, &7u64.to_be_bytes(), "first table is not inside"),
            (48, &far.to_be_bytes(), "refcount table is not inside"),
            (56, &u32::MAX.to_be_bytes(), "refcount table is not inside"),
            (60, &1u32.to_be_bytes(), "internal snapshots"),
            (72, &2u64.to_be_bytes(), "corrupt"),
            (72, &4u64.to_be_bytes(), "another file"),
            (72, &32u64.to_be_bytes(), "not known"),
            (100, &8u32.to_be_bytes(), "does not make sense"),
            (104, &0x4441_5441u32.to_be_bytes(), "another file"),
            (104, &0x0537_be77u32.to_be_bytes(), "encrypted"),
            (104, &[0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff], "cut short"),
            (2 * CLUSTER, &(1u64 << 40).to_be_bytes(), "outside itself"),
            (3 * CLUSTER, &(1u64 << 40).to_be_bytes(), "outside itself"),
            (3 * CLUSTER, &(3 * CLUSTER as u64).to_be_bytes(), "twice"),
            (3 * CLUSTER, &(5 * CLUSTER as u64).to_be_bytes(), "twice"),
            (3 * CLUSTER, &((1u64 << 62) | (1 << 40)).to_be_bytes(), "outside itself"),
        ] {
            let said = with(at, value);
            assert!(said.contains(word), "{at}: {said:?} does not say {word:?}");
        }
        let mut bad = sound();
        bad[72 + 7] = 8; // compression type follows
        bad[103] = 112;
        bad[104] = 7;
        assert!(look(&bad).expect_err("refused").what.contains("compression"));
        for len in 0..sound().len() - 2 * CLUSTER {
            let cut = look(&sound()[..len]);
            assert!(cut.is_err(), "{len}");
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut b = sound();
        for j in 0..64 {
            b[3 * CLUSTER + 8 * j..][..8]
                .copy_from_slice(&((1u64 << 62) | (4 * CLUSTER as u64)).to_be_bytes());
        }
        let limits = Limits { content: Bytes(10 * CLUSTER as u64), ..Limits::default() };
        assert!(check(&file(&b), Format::Qcow2, limits).expect_err("refused").what.contains("too large"));
    }

    #[test]
    fn formats_are_what_they_are_said_to_be() {
        let raw = |b: &[u8]| check(&file(b), Format::Raw, Limits::default());
        assert_eq!(raw(&[7; 700]).expect("raw").size, Bytes(1024));
        assert!(raw(&sound()).expect_err("qcow2").hint.is_some_and(|h| h.contains("qcow2")));
        assert!(raw(b"").is_err());
        assert!(look(&[0; 4096]).expect_err("raw").what.contains("not a qcow2"));
        for (magic, at, name) in OTHERS {
            let mut b = vec![0; 2048];
            b[at..at + magic.len()].copy_from_slice(magic);
            assert!(raw(&b).expect_err("refused").what.contains(name));
            assert!(look(&b).is_err());
        }
        let small = Limits { size: Bytes(512), content: Bytes(512) };
        assert!(check(&file(&[1; 513]), Format::Raw, small).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(changes in proptest::collection::vec((0usize..7 * CLUSTER, any::<u8>()), 0..12),
                                  cut in 0usize..7 * CLUSTER, whole in any::<bool>()) {
            let mut b = sound();
            for (at, value) in changes {
                b[at] = value;
            }
            if !whole {
                b.truncate(cut);
            }
            if let Ok(found) = look(&b) {
                prop_assert!(found.content <= found.size.max(Bytes(64 * CLUSTER as u64)) || found.content.0 < 1 << 20);
            }
        }
    }
}

//! `photon flaredb …`: keys, transactions, regions; and the service run alone. Files of operations are read in
//! [`steps`]; the service is run in [`serve`].

mod serve;
mod steps;

use super::{Format, Global, KeepToken, output};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use flaredb::{
    Refusal,
    client::{Abort, Isolation, Options, Txn, World, raw},
    key::{self, Mode, Span},
    model::{
        command::Want,
        limits::MAX_ROWS,
        read::{Project, Query, Row},
    },
    remote::{Config, Remote},
    wire::Keyspace,
};
use photon_auth::{CertPair, client_config};
use photon_base::{Code, Error, Name, Result};
use photon_client::Profile;
use photon_kv::Direction;
use serde_json::{Value, json};
use std::{io::Read, path::PathBuf};
use steps::{Step, steps};

/// Most bytes of a file of operations.
const FILE_MAX: u64 = 64 << 20;

/// `photon flaredb …`.
#[derive(clap::Subcommand)]
pub enum FlaredbCommand {
    /// Set a key. A value of - is read from standard input.
    ///
    /// Example: photon flaredb put greeting hello --project demo
    Put {
        #[command(flatten)]
        at: At,
        /// Key, up to 16 KiB.
        key: String,
        /// Value, up to 1 MiB.
        value: String,
    },
    /// Show a key. Exit code 3 when there is none.
    ///
    /// Example: photon flaredb get greeting --project demo -o json
    Get {
        #[command(flatten)]
        at: At,
        /// Key.
        key: String,
    },
    /// Set a key if it is as expected; exit code 4 if it is not, and then nothing is changed.
    ///
    /// Example: photon flaredb cas greeting --expect hello --value bye --project demo
    Cas {
        #[command(flatten)]
        at: At,
        /// Key.
        key: String,
        #[command(flatten)]
        expect: Expect,
        /// New value; without it the key is removed.
        #[arg(long, value_name = "V")]
        value: Option<String>,
    },
    /// Show the keys that begin with a prefix, in order.
    ///
    /// Example: photon flaredb scan gr --limit 10 --project demo
    Scan {
        #[command(flatten)]
        at: At,
        /// What they begin with; empty for all.
        #[arg(default_value = "")]
        prefix: String,
        /// Most of them, 1 to 10000.
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        /// Only those behind this key: the last of the page before (with --reverse, those before it).
        #[arg(long, value_name = "KEY")]
        after: Option<String>,
        /// From the last one on.
        #[arg(long)]
        reverse: bool,
        /// Keys without values.
        #[arg(long)]
        keys_only: bool,
    },
    /// Remove a key. Exit code 3 when there is none.
    ///
    /// Example: photon flaredb delete greeting --project demo
    Delete {
        #[command(flatten)]
        at: At,
        /// Key.
        key: String,
    },
    /// Run a file of operations as one serializable transaction over any keys; exit code 4 on a conflict.
    ///
    /// One operation a line: get KEY; put KEY VALUE; delete KEY; expect KEY VALUE (the key has this value);
    /// absent KEY (there is none). A key or value with spaces is written as a JSON string. # begins a comment.
    /// The keys are those of --txn: keys of transactions and of the other commands never meet.
    ///
    /// Example: printf 'expect a 1\nput a 0\nput b 1\n' | photon flaredb txn - --project demo
    #[command(verbatim_doc_comment)]
    Txn {
        #[command(flatten)]
        place: Place,
        /// The file; - is standard input.
        file: PathBuf,
    },
    /// Show the regions that the store consists of.
    ///
    /// Example: photon flaredb regions -o json
    Regions {
        #[command(flatten)]
        place: Place,
    },
    /// Show the nodes that hold them.
    Stores {
        #[command(flatten)]
        place: Place,
    },
    /// Split a region in two, before a key.
    ///
    /// Example: photon flaredb split m --project demo
    Split {
        #[command(flatten)]
        at: At,
        /// First key of the right half.
        key: String,
    },
    /// Make a region part of its left neighbour.
    ///
    /// Example: photon flaredb merge 4
    Merge {
        #[command(flatten)]
        place: Place,
        /// Its number, see photon flaredb regions.
        region: u64,
    },
    /// Run FlareDB outside of a cloud, in plain text on loopback: everybody there may do everything.
    ///
    /// One node: photon flaredb serve --tls off --data-dir /tmp/db --listen 127.0.0.1:2479
    /// Then: photon flaredb put a 1 --endpoint http://127.0.0.1:2479
    ///
    /// One of three, each with its own number and folder, beside an etcd or ChainFire at 127.0.0.1:2379:
    /// photon flaredb serve --tls off --data-dir /tmp/db1 --number 1 --coordinator http://127.0.0.1:2379
    /// --cluster 1=127.0.0.1:2480/127.0.0.1:2479,2=127.0.0.1:3480/127.0.0.1:3479,3=127.0.0.1:4480/127.0.0.1:4479
    /// Then: photon flaredb put a 1 --endpoint http://127.0.0.1:2479,http://127.0.0.1:3479,http://127.0.0.1:4479
    #[command(verbatim_doc_comment)]
    Serve(serve::ServeArgs),
}

/// Which store, and whose keys.
#[derive(clap::Args)]
pub struct Place {
    /// Another store than this cloud's, as in http://127.0.0.1:2479; commas between several nodes of one.
    #[arg(long, env = "PHOTON_FLAREDB", value_name = "URL")]
    endpoint: Option<String>,
    /// Keys of this project; without it those of the cloud as a whole.
    #[arg(long, short, env = "PHOTON_PROJECT", value_name = "NAME")]
    project: Option<Name>,
}

/// Which store, whose keys, and under which promises.
#[derive(clap::Args)]
pub struct At {
    #[command(flatten)]
    place: Place,
    /// Keys of transactions, instead of those with one version.
    #[arg(long)]
    txn: bool,
}

/// What a key must be.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Expect {
    /// It has this value.
    #[arg(long, value_name = "V")]
    expect: Option<String>,
    /// It was last written at this version.
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    /// There is none.
    #[arg(long)]
    absent: bool,
}

/// A store with whose keys are meant.
struct Store {
    db: Remote,
    space: Keyspace,
}

impl Store {
    async fn open(global: &Global, place: &Place) -> Result<Store> {
        let space = place.project.clone().map_or(Keyspace::Cluster, Keyspace::Project);
        let config = match &place.endpoint {
            Some(url) if url.starts_with("http://") => {
                Config { keyspace: space.clone(), connections: 1, ..Config::plain(url) }
            }
            url => own(global, url.clone(), space.clone()).await?,
        };
        Ok(Store { db: Remote::open(config).await?, space })
    }

    /// The full key of what a user calls `key`.
    fn key(&self, mode: Mode, key: &str) -> Result<Bytes> {
        if key.is_empty() {
            return Err(Refusal::EmptyKey.error());
        }
        key::key(mode, format!("{}{key}", self.space.prefix()).as_bytes()).map_err(|e| e.error())
    }

    /// What a user calls a full key.
    fn name(&self, full: &[u8]) -> Vec<u8> {
        let group = key::split(full).map(|p| p.group).unwrap_or_else(|| full.to_vec());
        group.strip_prefix(self.space.prefix().as_bytes()).map(<[u8]>::to_vec).unwrap_or(group)
    }

    async fn begin(&self) -> Result<Txn<Remote>> {
        // Asynchronous commits leave locks that somebody has to look after; this process is about to end.
        let options =
            Options { isolation: Isolation::Serializable, async_commit: false, ..Options::default() };
        Txn::begin(self.db.clone(), options).await.map_err(|e| e.error())
    }
}

/// The FlareDB of this machine's cloud, or of the one that the profile names.
async fn own(global: &Global, url: Option<String>, keyspace: Keyspace) -> Result<Config> {
    let path = global.profile_path();
    let profile = Profile::load(&path)?;
    let url = match url {
        Some(u) => u,
        None => super::import::beside(&profile, 2479)?,
    };
    let (mut pair, mut token) = (None, None);
    if profile.password.is_empty() {
        let text = |ext: &str| photon_rt::fs::read_text(&path.with_extension(ext), 64 << 10);
        pair = Some(CertPair { cert_pem: text("crt")?, key_pem: text("key")? });
    } else {
        let client = global.client().await?;
        client.get("/version").await?; // logs in, if the token of last time no longer holds
        client.keep_token(global).await;
        token = client.current_token().await;
    }
    let tls = client_config(&profile.ca, pair.as_ref(), &["h2"])?;
    Ok(Config { endpoints: vec![url], tls: Some(tls), token, keyspace, connections: 1 })
}

fn mode(at: &At) -> Mode {
    if at.txn { Mode::Txn } else { Mode::Raw }
}

/// Bytes as a field: text if they are, else base64.
fn field(v: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => v[name] = text.into(),
        Err(_) => v[format!("{name}Base64")] = BASE64.encode(bytes).into(),
    }
}

fn failed(e: Refusal) -> Error {
    e.error()
}

fn aborted(e: Abort) -> Error {
    match e {
        Abort::RolledBack(why) => {
            let e = why.error();
            Error { what: format!("the transaction was rolled back: {}", e.what), ..e }
        }
        Abort::Unknown(why) => {
            Error::new(Code::Timeout, "whether the transaction was committed is not known")
                .why(why)
                .hint("read its keys before you run it again")
        }
    }
}

fn none(key: &str) -> Error {
    Error::not_found(format!("key {key:?}"))
}

fn value_of(text: String) -> Result<Bytes> {
    if text != "-" {
        return Ok(text.into());
    }
    let mut all = Vec::new();
    let limit = key::MAX_VALUE as u64 + 1;
    let read = std::io::stdin().take(limit).read_to_end(&mut all);
    read.map_err(|e| Error::invalid("value", "standard input cannot be read").why(e))?;
    Ok(all.into())
}

/// Runs `photon flaredb …`.
pub async fn flaredb(global: &Global, command: FlaredbCommand) -> Result<()> {
    match command {
        FlaredbCommand::Serve(args) => serve::serve(global, args).await,
        FlaredbCommand::Put { at, key, value } => put(global, &at, &key, value_of(value)?).await,
        FlaredbCommand::Get { at, key } => get(global, &at, &key).await,
        FlaredbCommand::Cas { at, key, expect, value } => cas(global, &at, &key, expect, value).await,
        FlaredbCommand::Scan { at, prefix, limit, after, reverse, keys_only } => {
            let direction = if reverse { Direction::Backward } else { Direction::Forward };
            let project = if keys_only { Project::Keys } else { Project::All };
            scan(global, &at, &prefix, limit, after, direction, project).await
        }
        FlaredbCommand::Delete { at, key } => delete(global, &at, &key).await,
        FlaredbCommand::Txn { place, file } => txn(global, &place, &file).await,
        FlaredbCommand::Regions { place } => regions(global, &place).await,
        FlaredbCommand::Stores { place } => stores(global, &place).await,
        FlaredbCommand::Split { at, key } => {
            let s = Store::open(global, &at.place).await?;
            let full = s.key(mode(&at), &key)?;
            let border = key::border(&full).ok_or_else(|| Refusal::EmptyKey.error())?;
            show_ranges(global, &s.db.split(border).await.map_err(failed)?);
            Ok(())
        }
        FlaredbCommand::Merge { place, region } => {
            let s = Store::open(global, &place).await?;
            show_ranges(global, &s.db.merge(region).await.map_err(failed)?);
            Ok(())
        }
    }
}

fn tell(global: &Global, columns: &[(&str, &str)], value: Value) {
    match global.output {
        Format::Table | Format::Name => output::table(columns, &[value]),
        f => output::value(f, &value),
    }
}

async fn put(global: &Global, at: &At, name: &str, value: Bytes) -> Result<()> {
    let s = Store::open(global, &at.place).await?;
    let full = s.key(mode(at), name)?;
    let version = if at.txn {
        let mut t = s.begin().await?;
        t.put(full, value).map_err(failed)?;
        t.commit().await.map_err(aborted)?
    } else {
        raw::put(&s.db, full, value).await.map_err(failed)?
    };
    tell(global, &[("KEY", "/key"), ("VERSION", "/version")], json!({ "key": name, "version": version }));
    Ok(())
}

async fn get(global: &Global, at: &At, name: &str) -> Result<()> {
    let s = Store::open(global, &at.place).await?;
    let full = s.key(mode(at), name)?;
    let found = if at.txn {
        let start = s.db.timestamp().await.map_err(failed)?;
        let mut t = s.begin().await?;
        t.get(&full).await.map_err(failed)?.map(|v| (v, start))
    } else {
        raw::get(&s.db, &full).await.map_err(failed)?
    };
    let (value, version) = found.ok_or_else(|| none(name))?;
    let mut v = json!({ "key": name });
    field(&mut v, "value", &value);
    if !at.txn {
        v["version"] = version.into();
    }
    match global.output {
        Format::Table => {
            use std::io::Write;
            let mut out = std::io::stdout();
            // As it is: a reader that went away is no error.
            let _ = out.write_all(&value).and_then(|()| out.write_all(b"\n"));
        }
        Format::Name => output::line(name),
        f => output::value(f, &v),
    }
    Ok(())
}

async fn cas(global: &Global, at: &At, name: &str, expect: Expect, value: Option<String>) -> Result<()> {
    if at.txn {
        return Err(Error::invalid("txn", "cas is for keys with one version")
            .hint("photon flaredb txn with expect and put does the same for keys of transactions"));
    }
    let want = match (expect.expect, expect.version) {
        (Some(v), _) => Want::Value(v.into()),
        (_, Some(n)) => Want::Version(n),
        _ => Want::Present(false),
    };
    let value = value.map(value_of).transpose()?;
    let s = Store::open(global, &at.place).await?;
    let full = s.key(Mode::Raw, name)?;
    let version = raw::cas(&s.db, full, want, value).await.map_err(|e| match e {
        Refusal::CheckFailed { version: 0, .. } => {
            Error::new(Code::Conflict, format!("key {name:?} was not changed")).why("there is none")
        }
        Refusal::CheckFailed { version, value, .. } => {
            let value = value.unwrap_or_default();
            let text = String::from_utf8_lossy(&value[..value.len().min(64)]).into_owned();
            Error::new(Code::Conflict, format!("key {name:?} was not changed"))
                .why(format!("it has version {version} and begins with {text:?}"))
                .hint("read it, then decide again: photon flaredb get")
        }
        e => e.error(),
    })?;
    tell(global, &[("KEY", "/key"), ("VERSION", "/version")], json!({ "key": name, "version": version }));
    Ok(())
}

async fn delete(global: &Global, at: &At, name: &str) -> Result<()> {
    let s = Store::open(global, &at.place).await?;
    let full = s.key(mode(at), name)?;
    let version = if at.txn {
        let mut t = s.begin().await?;
        let there = t.get(&full).await.map_err(failed)?.is_some();
        t.delete(full).map_err(failed)?;
        if there { Some(t.commit().await.map_err(aborted)?) } else { None }
    } else {
        raw::delete(&s.db, full).await.map_err(failed)?
    };
    let version = version.ok_or_else(|| none(name))?;
    tell(global, &[("KEY", "/key"), ("VERSION", "/version")], json!({ "key": name, "version": version }));
    Ok(())
}

async fn scan(
    global: &Global,
    at: &At,
    prefix: &str,
    limit: usize,
    after: Option<String>,
    direction: Direction,
    project: Project,
) -> Result<()> {
    if limit == 0 || limit > MAX_ROWS {
        return Err(Error::invalid("limit", format!("{limit} is not 1 to {MAX_ROWS}")));
    }
    let s = Store::open(global, &at.place).await?;
    let mut span = Span::prefix(mode(at), format!("{}{prefix}", s.space.prefix()).as_bytes());
    if let Some(last) = after {
        let last = s.key(mode(at), &last)?;
        let rest = match direction {
            Direction::Forward => Span { start: key::after(&last), end: Bytes::new() },
            Direction::Backward => Span { start: Bytes::new(), end: last },
        };
        span = span.within(&rest);
        if span.is_empty() {
            return Err(Error::invalid("after", "lies outside of the prefix"));
        }
    }
    let rows: Vec<Row> = if at.txn {
        let mut t = s.begin().await?;
        t.scan(&span, direction, limit).await.map_err(failed)?
    } else {
        let query = Query { direction, limit, project, ..Query::all(span) };
        raw::scan(&s.db, &query).await.map_err(failed)?
    };
    let items: Vec<Value> = rows
        .iter()
        .map(|r| {
            let mut v = json!({ "version": r.version });
            field(&mut v, "key", &s.name(&r.key));
            if project == Project::All {
                field(&mut v, "value", &r.value);
            }
            v
        })
        .collect();
    match global.output {
        Format::Table if project == Project::Keys => {
            output::table(&[("KEY", "/key"), ("VERSION", "/version")], &items);
        }
        Format::Table => {
            output::table(&[("KEY", "/key"), ("VALUE", "/value"), ("VERSION", "/version")], &items);
        }
        Format::Name => {
            rows.iter().for_each(|r| output::line(&String::from_utf8_lossy(&s.name(&r.key))));
        }
        f => {
            let more = items.len() == limit;
            output::value(f, &json!({ "items": items, "more": more }));
        }
    }
    Ok(())
}

async fn txn(global: &Global, place: &Place, file: &std::path::Path) -> Result<()> {
    let text = if file.as_os_str() == "-" {
        let mut text = String::new();
        let read = std::io::stdin().take(FILE_MAX + 1).read_to_string(&mut text);
        let n = read.map_err(|e| Error::invalid("file", "standard input cannot be read").why(e))?;
        if n as u64 > FILE_MAX {
            return Err(Error::invalid("file", format!("is larger than {FILE_MAX} bytes")));
        }
        text
    } else {
        photon_rt::fs::read_text(file, FILE_MAX)?
    };
    let steps = steps(&text)?;
    let s = Store::open(global, place).await?;
    let mut t = s.begin().await?;
    let mut reads = Vec::new();
    for step in steps {
        match step {
            Step::Get(name) => {
                let value = t.get(&s.key(Mode::Txn, &name)?).await.map_err(failed)?;
                let mut v = json!({ "key": name, "found": value.is_some() });
                if let Some(bytes) = value {
                    field(&mut v, "value", &bytes);
                }
                reads.push(v);
            }
            Step::Put(name, value) => t.put(s.key(Mode::Txn, &name)?, value).map_err(failed)?,
            Step::Delete(name) => t.delete(s.key(Mode::Txn, &name)?).map_err(failed)?,
            Step::Expect(name, wanted) => {
                let value = t.get(&s.key(Mode::Txn, &name)?).await.map_err(failed)?;
                if value.as_deref() != wanted.as_ref().map(String::as_bytes) {
                    let is = value.map_or("there is none".to_string(), |v| {
                        format!("it begins with {:?}", String::from_utf8_lossy(&v[..v.len().min(64)]))
                    });
                    // Nothing was written or locked.
                    return Err(Error::new(Code::Conflict, format!("key {name:?} is not as expected"))
                        .why(is)
                        .hint("nothing was changed: read it, then decide again"));
                }
            }
        }
    }
    let commit = t.commit().await.map_err(aborted)?;
    match global.output {
        Format::Table | Format::Name => {
            if !reads.is_empty() {
                output::table(&[("KEY", "/key"), ("VALUE", "/value")], &reads);
            }
            output::line(&format!("committed at {commit}"));
        }
        f => output::value(f, &json!({ "commit": commit, "reads": reads })),
    }
    Ok(())
}

/// A bound of a region, for people: which keys, and the group at which it begins.
fn bound(b: &[u8]) -> String {
    let mode = match b.first() {
        None => return String::new(),
        Some(b'r') => "raw",
        Some(b'x') => "txn",
        Some(_) => "end",
    };
    let whole = key::split(&[b, &[0, 1]].concat());
    whole.map_or(mode.to_string(), |p| format!("{mode} {}", String::from_utf8_lossy(&p.group)))
}

const RANGE: [(&str, &str); 4] =
    [("REGION", "/id"), ("START", "/start"), ("END", "/end"), ("VERSION", "/version")];

fn range(d: &flaredb::model::Descriptor) -> Value {
    json!({ "id": d.id, "start": bound(&d.start), "end": bound(&d.end), "version": d.version,
            "startKey": BASE64.encode(&d.start), "endKey": BASE64.encode(&d.end) })
}

fn show(global: &Global, columns: &[(&str, &str)], items: Vec<Value>, name: &str) {
    match global.output {
        Format::Table => output::table(columns, &items),
        Format::Name => items.iter().for_each(|i| output::line(&i[name].to_string())),
        f => output::value(f, &json!({ "items": items })),
    }
}

fn show_ranges(global: &Global, regions: &[flaredb::model::Descriptor]) {
    show(global, &RANGE, regions.iter().map(range).collect(), "id");
}

async fn regions(global: &Global, place: &Place) -> Result<()> {
    let s = Store::open(global, place).await?;
    let all = s.db.regions().await.map_err(failed)?;
    let one = |r: flaredb::wire::proto::Region| {
        let mut v = range(r.region.as_ref().unwrap_or(&Default::default()));
        v["replicas"] = r.region.map(|d| d.members).unwrap_or_default().into();
        v["leader"] = r.leader.into();
        v["term"] = r.term.into();
        v["applied"] = r.applied.into();
        v
    };
    let columns =
        [&RANGE[..], &[("LEADER", "/leader"), ("REPLICAS", "/replicas"), ("APPLIED", "/applied")]].concat();
    show(global, &columns, all.into_iter().map(one).collect(), "id");
    Ok(())
}

async fn stores(global: &Global, place: &Place) -> Result<()> {
    let s = Store::open(global, place).await?;
    let all = s.db.stores().await.map_err(failed)?;
    let one = |s: flaredb::wire::proto::Store| json!({ "id": s.id, "node": s.node, "regions": s.regions, "leaders": s.leaders, "diskBytes": s.disk_bytes, "url": s.url });
    let columns = [
        ("STORE", "/id"),
        ("NODE", "/node"),
        ("REGIONS", "/regions"),
        ("LEADERS", "/leaders"),
        ("DISK BYTES", "/diskBytes"),
        ("URL", "/url"),
    ];
    show(global, &columns, all.into_iter().map(one).collect(), "id");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_told_in_words() {
        let full = key::key(Mode::Raw, b"c/m").expect("short");
        assert_eq!(bound(&key::border(&full).expect("border")), "raw c/m");
        assert_eq!((bound(b""), bound(b"r"), bound(b"s")), (String::new(), "raw".into(), "end".into()));
    }
}

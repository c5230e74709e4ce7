//! Randomness: the kernel's, or a seeded stream on threads that run a simulation.

use photon_base::Uid;
use std::cell::Cell;

thread_local! {
    static SEEDED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread draws from a stream fixed by `seed`; `None` goes back to the kernel's.
/// For simulations only: the stream is not secret.
pub fn seed(seed: Option<u64>) {
    SEEDED.set(seed);
}

/// Fills `out` with random bytes.
pub fn fill(out: &mut [u8]) {
    match SEEDED.get() {
        Some(state) => {
            let mut rng = Rng::new(state);
            for chunk in out.chunks_mut(8) {
                let n = chunk.len();
                chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..n]);
            }
            SEEDED.set(Some(rng.0));
        }
        None => aws_lc_rs::rand::fill(out)
            .expect("the kernel's entropy source answers once the machine has booted"),
    }
}

/// A random number.
pub fn u64() -> u64 {
    let mut b = [0; 8];
    fill(&mut b);
    u64::from_le_bytes(b)
}

/// A new identity.
pub fn uid() -> Uid {
    let mut b = [0; 16];
    fill(&mut b);
    Uid(u128::from_le_bytes(b))
}

/// A small, fast, seeded generator (SplitMix64, Steele et al. 2014) for simulations, jitter and
/// sampling. Not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// Next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n` (0 when `n` is 0). The bias for `n` far below 2^64 does not matter here.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next_u64() % n }
    }

    /// True in `percent` of the draws.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_the_stream() {
        let draw = |s| {
            seed(Some(s));
            let r = (u64(), uid(), u64());
            seed(None);
            r
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(uid(), uid());
    }
}

//! Bounds of single requests.

/// Most keys, conditions or ranges of a command.
pub const MAX_KEYS: usize = 4096;

/// Most bytes of a command.
pub const MAX_COMMAND: usize = 8 << 20;

/// Most secondary keys that a primary lock can name.
pub const MAX_ASYNC_KEYS: usize = 256;

/// Longest time that a transaction may be silent.
pub const MAX_TTL_MS: u64 = 24 * 3_600_000;

/// Values up to this size stand in the record itself: no second read.
pub const SHORT_VALUE: usize = 1024;

/// Most rows of a page.
pub const MAX_ROWS: usize = 10_000;

/// Bytes of keys and values after which a page ends.
pub const PAGE_BYTES: usize = 4 << 20;

/// Records after which a page ends, however few of them were wanted.
pub const PAGE_RECORDS: usize = 200_000;

/// Most locks that one answer names.
pub const MAX_LOCKS: usize = 64;

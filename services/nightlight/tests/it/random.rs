//! Random samples and random queries over them.
//!
//! Where two right evaluators may differ by rounding, what comes out must not hang on it: comparisons, ranks, counts
//! of changes, powers and rounding to integers are asked of raw samples only. Values are multiples of 1/8.

use nightlight::{engine::Memory, labels::Labels};
use photon_rt::entropy::Rng;

/// First sample, milliseconds. A multiple of an hour.
pub const BEGIN: i64 = 1_599_998_400_000;
/// Seconds of samples.
pub const SECONDS: i64 = 5400;

/// Which language.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// All that NightLight speaks.
    Whole,
    /// What Prometheus 2.42 means by the same words. Its ranges are closed at the left, so no sample lies on a bound
    /// of one: samples at 0.001 to 0.499 s within a second, evaluation at half seconds, inner steps of subqueries
    /// at whole seconds, no subquery in a subquery. Its `rate` weighs a counter that starts near zero differently:
    /// counters start at a million and do not fall. There is no way to hand it stale markers as text.
    /// Its `predict_linear` of a range with `@` lets the range wander with the steps, against its documentation: asked
    /// without. `hour(NaN)` is what the processor makes of NaN as an integer: not asked.
    Prometheus242,
}

pub struct Random {
    pub rng: Rng,
    pub dialect: Dialect,
    within_subquery: bool,
}

impl Random {
    pub fn new(seed: u64, dialect: Dialect) -> Self {
        Random { rng: Rng::new(seed), dialect, within_subquery: false }
    }

    fn whole(&self) -> bool {
        self.dialect == Dialect::Whole
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.rng.below(of.len() as u64) as usize]
    }

    fn eighths(&mut self, most: u64) -> f64 {
        self.rng.below(most * 8) as f64 / 8.0
    }

    /// Counters, gauges, odd values, buckets; with gaps, and series that begin late or end early.
    pub fn samples(&mut self) -> Memory {
        let mut all = Memory::default();
        for job in ["a", "b"] {
            for inst in ["1", "2", "3"] {
                let l = |name: &str, more: &[(&str, &str)]| {
                    let mut pairs = vec![("__name__", name), ("job", job), ("inst", inst)];
                    pairs.extend_from_slice(more);
                    Labels::of(&pairs)
                };
                for code in ["200", "500"] {
                    let start = if self.whole() && self.rng.percent(50) { 0.0 } else { 1e6 };
                    self.series(&mut all, &l("req_total", &[("code", code)]), start, |r, v| {
                        if r.whole() && r.rng.percent(2) { r.eighths(4) } else { v + r.eighths(30) }
                    });
                }
                self.series(&mut all, &l("temp", &[]), 20.0, |r, _| r.eighths(100_000) - 40_000.0);
                self.series(&mut all, &l("up", &[]), 1.0, |r, _| f64::from(u8::from(r.rng.percent(80))));
                self.series(&mut all, &l("odd", &[]), 0.0, |r, v| match r.rng.below(8) {
                    0 => f64::NAN,
                    1 => f64::INFINITY,
                    2 => f64::NEG_INFINITY,
                    3 => 0.0,
                    _ => v + 0.125,
                });
            }
            let mut counts = [0.0; 4];
            let bounds = ["0.1", "0.5", "1", "+Inf"];
            for k in 0..SECONDS / 15 {
                let t = self.instant(k);
                for i in 0..4 {
                    let more = self.rng.below(5) as f64;
                    counts.iter_mut().skip(i).for_each(|c| *c += more);
                }
                for (le, count) in bounds.iter().zip(counts) {
                    let labels = Labels::of(&[("__name__", "lat_bucket"), ("job", job), ("le", le)]);
                    all.push(&labels, t, count).expect("in order");
                }
            }
        }
        all
    }

    fn instant(&mut self, k: i64) -> i64 {
        let within = if self.whole() { self.rng.below(500) } else { 1 + self.rng.below(499) };
        BEGIN + k * 15_000 + within as i64
    }

    fn series(&mut self, all: &mut Memory, l: &Labels, start: f64, next: impl Fn(&mut Self, f64) -> f64) {
        let mut v = start;
        let (mut from, mut to) = (0, SECONDS / 15);
        match self.rng.below(6) {
            0 => from = self.rng.below(200) as i64,
            1 => to = 100 + self.rng.below(200) as i64,
            _ => {}
        }
        let hole = self.rng.below(300) as i64;
        for k in from..to {
            v = next(self, v);
            let t = self.instant(k);
            if self.rng.percent(4) || (hole..hole + 25).contains(&k) {
                continue;
            }
            let stale = self.whole() && self.rng.percent(2);
            let value = if stale { f64::from_bits(nightlight::engine::STALE_BITS) } else { v };
            all.push(l, t, value).expect("in order");
            if v.is_nan() || v.is_infinite() {
                v = self.eighths(50) - 20.0;
            }
        }
    }

    /// Start, end, step in milliseconds; step 0 for one instant.
    pub fn when(&mut self) -> (i64, i64, i64) {
        let start = BEGIN + 500 + self.rng.below(SECONDS as u64) as i64 * 1000;
        if self.rng.percent(20) {
            return (start, start, 0);
        }
        let step = [1000, 7000, 15_000, 60_000, 300_000][self.rng.below(5) as usize];
        (start, start + step * self.rng.below(40) as i64, step)
    }

    fn selector(&mut self, names: &[&str]) -> String {
        let name = self.one(names).to_string();
        let matchers = match self.rng.below(8) {
            0 => "{job=\"a\"}",
            1 => "{inst!=\"2\"}",
            2 => "{inst=~\"1|3\",job=\"b\"}",
            3 => "{job!~\"b.*\"}",
            4 => "{nothing=\"\"}",
            _ => "",
        };
        format!("{name}{matchers}")
    }

    fn modifiers(&mut self) -> String {
        let mut out = String::new();
        if self.rng.percent(8) {
            match self.rng.below(4) {
                0 => out.push_str(" @ start()"),
                1 => out.push_str(" @ end()"),
                _ => {
                    let at = BEGIN / 1000 + self.rng.below(SECONDS as u64) as i64;
                    out.push_str(&format!(" @ {at}.5"));
                }
            }
        }
        if self.rng.percent(10) {
            let offset = ["1m", "-2m", "37s", "10m"][self.rng.below(4) as usize];
            out.push_str(&format!(" offset {offset}"));
        }
        out
    }

    fn raw(&mut self) -> String {
        let s = self.selector(&["req_total", "temp", "up", "odd", "lat_bucket"]);
        s + &self.modifiers()
    }

    fn duration(&mut self) -> &'static str {
        self.one(&["20s", "45s", "1m", "5m", "12m", "30m"])
    }

    fn range(&mut self, names: &[&str]) -> String {
        let (s, d, m) = (self.selector(names), self.duration(), self.modifiers());
        format!("{s}[{d}]{m}")
    }

    fn matrix(&mut self, depth: u32) -> String {
        if depth == 0 || self.within_subquery || self.rng.percent(70) {
            return self.range(&["req_total", "temp", "up", "odd", "lat_bucket"]);
        }
        self.within_subquery = !self.whole();
        let inner = self.vector(depth - 1);
        self.within_subquery = false;
        let (d, step, m) = (self.duration(), self.one(&["", "10s", "1m", "17s"]), self.modifiers());
        format!("({inner})[{d}:{step}]{m}")
    }

    pub fn scalar(&mut self, depth: u32) -> String {
        match self.rng.below(6) {
            0 => "time()".into(),
            1 if depth > 0 => format!("scalar({})", self.vector(depth - 1)),
            2 => "-1.5".into(),
            _ => format!("{}", self.rng.below(9) as f64 / 2.0),
        }
    }

    fn grouping(&mut self) -> &'static str {
        self.one(&[
            "",
            "by (job) ",
            "by (inst, job) ",
            "without (inst) ",
            "without (code, le) ",
            "by (none) ",
        ])
    }

    pub fn vector(&mut self, depth: u32) -> String {
        if depth == 0 {
            return self.raw();
        }
        let d = depth - 1;
        match self.rng.below(20) {
            0 => self.raw(),
            1 | 2 => {
                let f = self.one(&["rate", "increase", "irate"]);
                let all = if self.whole() { &["req_total", "temp", "odd"][..] } else { &["req_total"][..] };
                format!("{f}({})", self.range(all))
            }
            3..=5 => {
                let f = self.one(&[
                    "sum_over_time",
                    "avg_over_time",
                    "min_over_time",
                    "max_over_time",
                    "count_over_time",
                    "last_over_time",
                    "present_over_time",
                    "stddev_over_time",
                    "stdvar_over_time",
                    "absent_over_time",
                ]);
                format!("{f}({})", self.matrix(d))
            }
            6 => {
                let f = self.one(&["changes", "resets"]);
                format!("{f}({})", self.range(&["req_total", "temp", "up", "odd"]))
            }
            7 => {
                let f = self.one(&["delta", "idelta", "deriv"]);
                format!("{f}({})", self.range(&["temp", "up", "req_total"]))
            }
            8 => {
                let (q, m) = (self.one(&["0", "0.25", "0.9", "1", "-1", "2"]), self.matrix(d));
                format!("quantile_over_time({q}, {m})")
            }
            9 => {
                let mut range = self.range(&["temp", "req_total"]);
                if !self.whole() {
                    range.truncate(range.find(']').map_or(0, |at| at + 1));
                }
                format!("predict_linear({range}, 600)")
            }
            10 | 11 => {
                let (op, g) = (self.one(&["sum", "avg", "count", "group", "min", "max"]), self.grouping());
                format!("{op} {g}({})", self.vector(d))
            }
            12 => {
                let (op, g) = (self.one(&["stddev", "stdvar"]), self.grouping());
                format!("{op} {g}({})", self.selector(&["temp", "up"]))
            }
            13 => {
                let (g, q) = (self.grouping(), self.one(&["0.5", "0", "0.99", "1.5"]));
                format!("quantile {g}({q}, {})", self.vector(d))
            }
            14 => match self.rng.below(3) {
                0 => format!("count_values {}(\"v\", {})", self.grouping(), self.selector(&["up"])),
                1 => {
                    let (g, q) = (self.one(&["", "by (job, code) "]), self.one(&["0.5", "0.9", "1"]));
                    let m = if g.is_empty() { "rate(lat_bucket[5m])" } else { "lat_bucket" };
                    let g = if g.is_empty() { "by (le, job) " } else { "by (le) " };
                    format!("histogram_quantile({q}, sum {g}({m}))")
                }
                _ => {
                    let (op, g, k) = (self.one(&["topk", "bottomk"]), self.grouping(), self.rng.below(4));
                    format!("{op} {g}({k}, {})", self.selector(&["temp"]))
                }
            },
            15 => {
                let f = self.one(&["abs", "sqrt", "-", "exp", "ln", "log2", "deg", "atan", "sinh"]);
                format!("{f}({})", self.vector(d))
            }
            16 => {
                let inner = self.raw();
                match self.rng.below(9) {
                    0 => format!("floor({inner})"),
                    1 => format!("round({inner}, 0.5)"),
                    2 => format!("clamp({inner}, -10, {})", self.scalar(0)),
                    3 => format!("timestamp({inner})"),
                    4 => format!("absent({inner})"),
                    5 => format!("sgn({inner})"),
                    6 => format!("hour({})", self.selector(&["temp", "up"])),
                    7 => format!("label_replace({inner}, \"x\", \"$1-y\", \"inst\", \"([12])\")"),
                    _ => format!("label_join({inner}, \"x\", \"-\", \"job\", \"inst\")"),
                }
            }
            17 => {
                if self.rng.percent(10) {
                    let (raw, power) = (self.raw(), self.one(&["2", "-1", "0.5", "0"]));
                    return if self.rng.percent(50) {
                        format!("{raw} ^ {power}")
                    } else {
                        format!("{power} ^ {raw}")
                    };
                }
                let (op, l, r) = (self.one(&["+", "-", "*", "/"]), self.vector(d), self.scalar(d));
                if self.rng.percent(50) { format!("({l}) {op} ({r})") } else { format!("({r}) {op} ({l})") }
            }
            18 => {
                let (op, b) = (self.one(&["==", "!=", "<", ">", "<=", ">="]), self.one(&["", " bool"]));
                if self.rng.percent(50) {
                    return format!("{} {op}{b} {}", self.raw(), self.rng.below(60));
                }
                let (l, r) = (self.selector(&["temp", "up"]), self.selector(&["up", "temp"]));
                format!("{l} {op}{b} ignoring (none) {r}")
            }
            _ => {
                let (l, r) = (self.vector(d), self.vector(d));
                let op = self.one(&[
                    "+",
                    "- on (job, inst)",
                    "* ignoring (code)",
                    "/ on (job, inst) group_left ()",
                    "+ on (inst, job) group_right (code)",
                    "* on (job) group_left (inst)",
                    "and",
                    "or",
                    "unless",
                    "and on (job)",
                    "or ignoring (code)",
                    "unless on (inst)",
                ]);
                format!("({l}) {op} ({r})")
            }
        }
    }
}

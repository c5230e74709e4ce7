//! Native histograms: random queries against a slow evaluator written from the documentation, which keeps buckets by
//! their place on a ladder of its own and never asks the engine's arithmetic.

use crate::reference::{close, query};
use nightlight::{
    engine::{Cancel, Memory, Point, Value, run},
    histogram::Histogram,
    labels::Labels,
    promql::parse,
};
use photon_rt::entropy::Rng;
use std::{collections::BTreeMap, sync::Arc};

const STEP: i64 = 15_000;
const SAMPLES: i64 = 120;

/// A histogram: resolution, and observations by side (below: true) and bucket.
#[derive(Clone, Debug, Default)]
struct Ladder {
    schema: i32,
    zero_width: f64,
    zero: f64,
    all: f64,
    sum: f64,
    buckets: BTreeMap<(bool, i32), f64>,
}

fn upper(schema: i32, i: i32) -> f64 {
    2f64.powf(f64::from(i) * 2f64.powi(-schema))
}

impl Ladder {
    fn of(h: &Histogram) -> Self {
        let side =
            |below: bool, b: &[(i32, f64)]| b.iter().map(|(i, c)| ((below, *i), *c)).collect::<Vec<_>>();
        Ladder {
            schema: i32::from(h.schema),
            zero_width: h.zero_threshold,
            zero: h.zero_count,
            all: h.count,
            sum: h.sum,
            buckets: side(false, &h.positive).into_iter().chain(side(true, &h.negative)).collect(),
        }
    }

    /// At a coarser resolution: a bucket of it takes those whose upper bound is within.
    fn coarser(&self, schema: i32) -> Self {
        let mut out = Ladder { schema, buckets: BTreeMap::new(), ..self.clone() };
        let merged = 1 << (self.schema - schema);
        for ((below, i), c) in &self.buckets {
            let to = (f64::from(*i) / f64::from(merged)).ceil() as i32;
            *out.buckets.entry((*below, to)).or_insert(0.0) += c;
        }
        out
    }

    /// With everything nearer to zero than `width` in the middle; buckets that would be cut go there whole.
    fn wider(&self, width: f64) -> Self {
        if width == self.zero_width {
            return self.clone();
        }
        let cut = |w: f64| {
            let ends = self.buckets.iter().filter(|(_, c)| **c != 0.0).map(|((_, i), _)| *i);
            ends.filter(|i| upper(self.schema, i - 1) < w && upper(self.schema, *i) > w)
                .map(|i| upper(self.schema, i))
                .fold(w, f64::max)
        };
        let mut width = width;
        while cut(width) > width {
            width = cut(width);
        }
        let mut out = Ladder { zero_width: width, ..self.clone() };
        out.buckets.retain(|(_, i), c| {
            let inside = upper(self.schema, *i) <= width;
            if inside {
                out.zero += *c;
            }
            !inside
        });
        out
    }

    fn plus(&self, o: &Self, times: f64) -> Self {
        let (mut a, mut b) = (self.clone(), o.clone());
        while a.zero_width != b.zero_width {
            let w = a.zero_width.max(b.zero_width);
            if a.zero_width < w { a = a.wider(w) } else { b = b.wider(w) }
        }
        let schema = a.schema.min(b.schema);
        (a, b) = (a.coarser(schema), b.coarser(schema));
        for (k, c) in b.buckets {
            *a.buckets.entry(k).or_insert(0.0) += times * c;
        }
        a.zero += times * b.zero;
        a.all += times * b.all;
        a.sum += times * b.sum;
        a
    }

    fn times(mut self, by: f64) -> Self {
        self.buckets.values_mut().for_each(|c| *c *= by);
        (self.zero, self.all, self.sum) = (self.zero * by, self.all * by, self.sum * by);
        self
    }

    fn began_anew_after(&self, before: &Self) -> bool {
        if self.all < before.all || self.schema > before.schema || self.zero_width < before.zero_width {
            return true;
        }
        let b = before.wider(self.zero_width);
        if b.zero_width != self.zero_width || self.zero < b.zero {
            return true;
        }
        let b = b.coarser(self.schema);
        b.buckets.iter().any(|(k, c)| self.buckets.get(k).copied().unwrap_or(0.0) < *c)
    }

    /// Lower and upper bound and count of each bucket, from below.
    fn rows(&self) -> Vec<(f64, f64, f64)> {
        let mut out = Vec::new();
        for ((below, i), c) in self.buckets.iter().filter(|b| *b.1 != 0.0) {
            let (a, b) = (upper(self.schema, i - 1), upper(self.schema, *i));
            out.push(if *below { (-b, -a, *c) } else { (a, b, *c) });
        }
        if self.zero != 0.0 {
            let any = |side: bool| self.buckets.iter().any(|(k, c)| k.0 == side && *c != 0.0);
            let w = self.zero_width;
            let (low, high) = match (any(true), any(false)) {
                (true, false) => (-w, 0.0),
                (false, true) => (0.0, w),
                _ => (-w, w),
            };
            out.push((low, high, self.zero));
        }
        out.sort_by(|a, b| (a.0 + a.1).partial_cmp(&(b.0 + b.1)).expect("bounds"));
        out
    }

    fn quantile(&self, q: f64) -> f64 {
        if self.all == 0.0 {
            return f64::NAN;
        }
        let wanted = q * self.all;
        let mut seen = 0.0;
        let rows = self.rows();
        for (k, (low, high, c)) in rows.iter().enumerate() {
            if seen + c >= wanted * (1.0 - 1e-12) || k + 1 == rows.len() {
                let part = ((wanted - seen) / c).clamp(0.0, 1.0);
                return if *low <= 0.0 && *high >= 0.0 {
                    low + (high - low) * part
                } else {
                    low * (high / low).powf(part)
                };
            }
            seen += c;
        }
        f64::NAN
    }

    fn stdvar(&self) -> f64 {
        let mean = self.sum / self.all;
        let middle = |low: f64, high: f64| {
            if low <= 0.0 && high >= 0.0 { 0.0 } else { (low * high).sqrt() * low.signum() }
        };
        self.rows().iter().map(|(l, h, c)| c * (middle(*l, *h) - mean).powi(2)).sum::<f64>() / self.all
    }
}

#[derive(Clone, Debug)]
enum V {
    N(f64),
    H(Ladder),
}

type Series = BTreeMap<String, V>;

/// Series of `h`, by their only other label.
type Data = BTreeMap<String, Vec<(i64, Ladder)>>;

fn data(rng: &mut Rng) -> (Memory, Data) {
    let (mut memory, mut ladders) = (Memory::default(), Data::new());
    for s in ["1", "2", "3"] {
        let mut h = Histogram { schema: rng.below(4) as i8, zero_threshold: 0.001, ..Histogram::default() };
        let labels = Labels::of(&[("__name__", "h"), ("s", s)]);
        let mut all = Vec::new();
        for k in 0..SAMPLES {
            if rng.percent(2) {
                h = Histogram { schema: h.schema, zero_threshold: h.zero_threshold, ..Histogram::default() };
            }
            if rng.percent(3) && h.schema > -2 {
                h = h.reduced(h.schema - 1);
            }
            for _ in 0..rng.below(5) {
                let i = rng.below(12) as i32 - 4;
                let side = if rng.percent(70) { &mut h.positive } else { &mut h.negative };
                match side.binary_search_by_key(&i, |b| b.0) {
                    Ok(at) => side[at].1 += 1.0,
                    Err(at) => side.insert(at, (i, 1.0)),
                }
                h.count += 1.0;
                h.sum += rng.below(80) as f64 / 8.0 - 2.0;
            }
            if rng.percent(20) {
                h.zero_count += 1.0;
                h.count += 1.0;
            }
            if rng.percent(90) {
                let t = k * STEP + rng.below(500) as i64;
                memory.put(&labels, t, Point::Histogram(Arc::new(h.clone()))).expect("in order");
                all.push((t, Ladder::of(&h)));
            }
        }
        ladders.insert(s.to_string(), all);
    }
    (memory, ladders)
}

/// A query and what it gives, made together.
enum Query {
    Now,
    Range(&'static str, i64),
    Sum(bool, bool, Box<Query>),
    Times(f64, Box<Query>),
    Plus(f64, Box<Query>, Box<Query>),
    Of(&'static str, Box<Query>),
    Quantile(f64, Box<Query>),
}

impl Query {
    fn random(rng: &mut Rng, depth: u32) -> Query {
        let more = |rng: &mut Rng| Box::new(Query::random(rng, depth - 1));
        let ranges = [
            "rate",
            "increase",
            "delta",
            "irate",
            "idelta",
            "sum_over_time",
            "avg_over_time",
            "last_over_time",
        ];
        match rng.below(if depth == 0 { 4 } else { 10 }) {
            0 => Query::Now,
            1..=3 => {
                let f = ranges[rng.below(8) as usize];
                Query::Range(f, [40_000, 60_000, 300_000][rng.below(3) as usize])
            }
            4 | 5 => Query::Sum(rng.percent(50), rng.percent(50), more(rng)),
            6 => Query::Times([2.0, 0.5, 4.0][rng.below(3) as usize], more(rng)),
            _ => Query::Plus(if rng.percent(60) { 1.0 } else { -1.0 }, more(rng), more(rng)),
        }
    }

    fn top(rng: &mut Rng) -> Query {
        let inner = Query::random(rng, 3);
        match rng.below(8) {
            0..=1 => inner,
            2 => Query::Of("histogram_count", Box::new(inner)),
            3 => Query::Of("histogram_sum", Box::new(inner)),
            4 => Query::Of("histogram_avg", Box::new(inner)),
            5 => Query::Of("histogram_stdvar", Box::new(Query::Range("increase", 300_000))),
            6 => Query::Range(if rng.percent(50) { "resets" } else { "count_over_time" }, 300_000),
            _ => {
                let q = [0.1, 0.37, 0.5, 0.9][rng.below(4) as usize];
                Query::Quantile(
                    q,
                    Box::new(Query::Sum(true, false, Box::new(Query::Range("increase", 300_000)))),
                )
            }
        }
    }

    fn text(&self) -> String {
        match self {
            Query::Now => "h".into(),
            Query::Range(f, range) => format!("{f}(h[{range}ms])"),
            Query::Sum(sum, by, q) => {
                let (op, by) = (if *sum { "sum" } else { "avg" }, if *by { " by (s) " } else { "" });
                format!("{op}{by}({})", q.text())
            }
            Query::Times(by, q) => format!("({}) * {by}", q.text()),
            Query::Plus(sign, a, b) => {
                let op = if *sign > 0.0 { "+" } else { "-" };
                format!("({}) {op} ignoring (__name__) ({})", a.text(), b.text())
            }
            Query::Of(f, q) => format!("{f}({})", q.text()),
            Query::Quantile(q, inner) => format!("histogram_quantile({q}, {})", inner.text()),
        }
    }

    /// By the value of `s`; empty where it is gone.
    fn value(&self, data: &Data, t: i64) -> Series {
        let mut out = Series::new();
        match self {
            Query::Now => {
                for (s, all) in data {
                    let last = all.iter().rfind(|x| x.0 <= t && x.0 > t - 300_000);
                    out.extend(last.map(|x| (s.clone(), V::H(x.1.clone()))));
                }
            }
            Query::Range(f, range) => {
                for (s, all) in data {
                    let w: Vec<_> = all.iter().filter(|x| x.0 <= t && x.0 > t - range).collect();
                    out.extend(over(f, &w, t, *range).map(|v| (s.clone(), v)));
                }
            }
            Query::Sum(sum, by, q) => {
                let mut groups: BTreeMap<String, Vec<Ladder>> = BTreeMap::new();
                for (s, v) in q.value(data, t) {
                    let V::H(h) = v else { continue };
                    groups.entry(if *by { s } else { String::new() }).or_default().push(h);
                }
                for (s, all) in groups {
                    let total = all[1..].iter().fold(all[0].clone(), |a, b| a.plus(b, 1.0));
                    let by = if *sum { 1.0 } else { 1.0 / all.len() as f64 };
                    out.insert(s, V::H(total.times(by)));
                }
            }
            Query::Times(by, q) => {
                for (s, v) in q.value(data, t) {
                    if let V::H(h) = v {
                        out.insert(s, V::H(h.times(*by)));
                    }
                }
            }
            Query::Plus(sign, a, b) => {
                let right = b.value(data, t);
                for (s, v) in a.value(data, t) {
                    if let (V::H(l), Some(V::H(r))) = (v, right.get(&s)) {
                        out.insert(s, V::H(l.plus(r, *sign)));
                    }
                }
            }
            Query::Of(f, q) => {
                for (s, v) in q.value(data, t) {
                    let V::H(h) = v else { continue };
                    let v = match *f {
                        "histogram_count" => h.all,
                        "histogram_sum" => h.sum,
                        "histogram_avg" => h.sum / h.all,
                        _ => h.stdvar(),
                    };
                    out.insert(s, V::N(v));
                }
            }
            Query::Quantile(phi, q) => {
                for (s, v) in q.value(data, t) {
                    if let V::H(h) = v {
                        out.insert(s, V::N(h.quantile(*phi)));
                    }
                }
            }
        }
        out
    }
}

fn over(f: &str, w: &[&(i64, Ladder)], t: i64, range: i64) -> Option<V> {
    let (first, last) = (w.first()?, w.last()?);
    let sum = || w[1..].iter().fold(first.1.clone(), |a, b| a.plus(&b.1, 1.0));
    let counter = matches!(f, "rate" | "increase" | "irate");
    Some(match f {
        "count_over_time" => V::N(w.len() as f64),
        "resets" => V::N(w.windows(2).filter(|p| p[1].1.began_anew_after(&p[0].1)).count() as f64),
        "last_over_time" => V::H(last.1.clone()),
        "sum_over_time" => V::H(sum()),
        "avg_over_time" => V::H(sum().times(1.0 / w.len() as f64)),
        _ if w.len() < 2 => return None,
        "irate" | "idelta" => {
            let before = w[w.len() - 2];
            let anew = counter && last.1.began_anew_after(&before.1);
            let rise = if anew { last.1.clone() } else { last.1.plus(&before.1, -1.0) };
            let seconds = (last.0 - before.0) as f64 / 1000.0;
            V::H(rise.times(if counter { 1.0 / seconds } else { 1.0 }))
        }
        _ => {
            // The first sample is of no matter when the second one begins anew.
            let anew = counter && w[1].1.began_anew_after(&first.1);
            let mut rise = if anew { last.1.clone() } else { last.1.plus(&first.1, -1.0) };
            if counter {
                let coarsest = w[1..].iter().map(|x| x.1.schema).min()?;
                rise = rise.coarser(rise.schema.min(coarsest));
                for p in w.windows(2).skip(usize::from(anew)) {
                    if p[1].1.began_anew_after(&p[0].1) {
                        rise = rise.plus(&p[0].1, 1.0);
                    }
                }
            }
            let sampled = (last.0 - first.0) as f64 / 1000.0;
            let gap = sampled / (w.len() - 1) as f64;
            let reach = |ms: i64| if ms as f64 / 1000.0 < gap * 1.1 { ms as f64 / 1000.0 } else { gap / 2.0 };
            let (mut before, after) = (reach(first.0 - (t - range)), reach(t - last.0));
            if counter && rise.all > 0.0 {
                before = before.min(sampled * first.1.all / rise.all);
            }
            let factor = (sampled + before + after) / sampled;
            V::H(rise.times(if f == "rate" { factor / (range as f64 / 1000.0) } else { factor }))
        }
    })
}

fn same(want: &V, got: &Point) -> bool {
    let near = |a: f64, b: f64| close(a, b) || (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
    match (want, got) {
        (V::N(a), Point::Number(b)) => near(*a, *b),
        (V::H(a), Point::Histogram(b)) => {
            let b = Ladder::of(b);
            let rest = |x: &Ladder, y: &Ladder| {
                x.buckets.iter().all(|(k, c)| close(*c, y.buckets.get(k).copied().unwrap_or(0.0)))
            };
            a.schema == b.schema
                && a.zero_width == b.zero_width
                && near(a.zero, b.zero)
                && near(a.all, b.all)
                && near(a.sum, b.sum)
                && rest(a, &b)
                && rest(&b, a)
        }
        _ => false,
    }
}

#[test]
fn the_engine_agrees_with_the_slow_evaluator_on_histograms() {
    let (mut answers, mut empty) = (0, 0);
    for seed in 0..12 {
        let (memory, ladders) = data(&mut Rng::new(seed));
        for k in 0..120 {
            let mut rng = Rng::new(seed * 1000 + k);
            let q = Query::top(&mut rng);
            let (text, t) = (q.text(), rng.below((SAMPLES * STEP) as u64) as i64);
            let e = parse(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let got = run(&memory, &text, &e, query((t, t, 0)), &Cancel::default())
                .unwrap_or_else(|e| panic!("{text}: {e}"));
            let Value::Vector(got) = got.value else { panic!("{text}: no vector") };
            let want = q.value(&ladders, t);
            let where_ = format!("seed {seed} query {k}: {text} at {t}");
            assert_eq!(got.len(), want.len(), "{where_}: {got:?} {want:?}");
            for (labels, _, p) in &got {
                let w = want.get(labels.get("s")).unwrap_or_else(|| panic!("{where_}: {labels}"));
                assert!(same(w, p), "{where_}: {labels}\nengine {p:?}\nslow   {w:?}");
            }
            if got.is_empty() { empty += 1 } else { answers += 1 }
        }
    }
    println!("{answers} answers, {empty} empty");
    assert!(answers > 1000, "{answers}");
}

/// What a sender of remote write 1.0 says, as far as it is needed here.
mod wire {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub struct Request {
        #[prost(message, repeated, tag = "1")]
        pub series: Vec<Series>,
    }
    #[derive(Clone, PartialEq, Message)]
    pub struct Series {
        #[prost(message, repeated, tag = "1")]
        pub labels: Vec<Label>,
        #[prost(message, repeated, tag = "4")]
        pub histograms: Vec<Histogram>,
    }
    #[derive(Clone, PartialEq, Message)]
    pub struct Label {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub value: String,
    }
    #[derive(Clone, PartialEq, Message)]
    pub struct Histogram {
        #[prost(uint64, optional, tag = "1")]
        pub count: Option<u64>,
        #[prost(double, tag = "3")]
        pub sum: f64,
        #[prost(sint32, tag = "4")]
        pub schema: i32,
        #[prost(double, tag = "5")]
        pub zero_threshold: f64,
        #[prost(uint64, optional, tag = "6")]
        pub zero_count: Option<u64>,
        #[prost(message, repeated, tag = "8")]
        pub negative_spans: Vec<Span>,
        #[prost(sint64, repeated, tag = "9")]
        pub negative_deltas: Vec<i64>,
        #[prost(message, repeated, tag = "11")]
        pub positive_spans: Vec<Span>,
        #[prost(sint64, repeated, tag = "12")]
        pub positive_deltas: Vec<i64>,
        #[prost(int64, tag = "15")]
        pub timestamp: i64,
    }
    #[derive(Clone, PartialEq, Message)]
    pub struct Span {
        #[prost(sint32, tag = "1")]
        pub offset: i32,
        #[prost(uint32, tag = "2")]
        pub length: u32,
    }

    pub fn side(b: &[(i32, f64)]) -> (Vec<Span>, Vec<i64>) {
        let (mut spans, mut deltas): (Vec<Span>, Vec<i64>) = (Vec::new(), Vec::new());
        let (mut next, mut count) = (0, 0);
        for (i, c) in b {
            match spans.last_mut() {
                Some(s) if *i == next => s.length += 1,
                _ => spans.push(Span { offset: i - next, length: 1 }),
            }
            next = i + 1;
            deltas.push(*c as i64 - count);
            count = *c as i64;
        }
        (spans, deltas)
    }
}

fn message(data: &Memory) -> Vec<u8> {
    use prost::Message;
    let histogram = |t: i64, h: &Histogram| {
        let (negative_spans, negative_deltas) = wire::side(&h.negative);
        let (positive_spans, positive_deltas) = wire::side(&h.positive);
        wire::Histogram {
            count: Some(h.count as u64),
            sum: h.sum,
            schema: i32::from(h.schema),
            zero_threshold: h.zero_threshold,
            zero_count: Some(h.zero_count as u64),
            negative_spans,
            negative_deltas,
            positive_spans,
            positive_deltas,
            timestamp: t,
        }
    };
    let series = data.iter().map(|(labels, s)| wire::Series {
        labels: labels
            .iter()
            .map(|(n, v)| wire::Label { name: n.to_string(), value: v.to_string() })
            .collect(),
        histograms: (0..s.len()).filter_map(|i| s.histogram(i).map(|h| histogram(s.t[i], h))).collect(),
    });
    let message = wire::Request { series: series.collect() };
    snap::raw::Encoder::new().compress_vec(&message.encode_to_vec()).expect("packed")
}

fn post(port: u16, path: &str, kind: &str, body: &[u8]) -> std::io::Result<(u16, String)> {
    use std::io::{Read, Write};
    let mut s = std::net::TcpStream::connect(("127.0.0.1", port))?;
    let len = body.len();
    write!(s, "POST {path} HTTP/1.0\r\nHost: localhost\r\n{kind}Content-Length: {len}\r\n\r\n")?;
    s.write_all(body)?;
    let mut text = String::new();
    s.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Ok((status, text.split_once("\r\n\r\n").map(|b| b.1.to_string()).unwrap_or_default()))
}

/// A point of an answer, as a list of numbers.
fn numbers(series: &serde_json::Value) -> Vec<f64> {
    let f = |v: &serde_json::Value| v.as_str().expect("text").parse::<f64>().expect("number");
    let h = &series["histogram"][1];
    if h.is_null() {
        return vec![f(&series["value"][1])];
    }
    let mut out = vec![f(&h["count"]), f(&h["sum"])];
    for b in h["buckets"].as_array().into_iter().flatten() {
        out.push(b[0].as_f64().expect("bounds"));
        out.extend([f(&b[1]), f(&b[2]), f(&b[3])]);
    }
    out
}

/// Debian's Prometheus 2.42 knows histograms as an experiment: sums, rates, counts. It does not shorten a rate at the
/// point where a counter would have been zero: histograms here begin with a million observations and never anew. Its
/// ranges are closed at the left: no sample lies on a bound. Its quantiles are linear: not asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_agrees_with_prometheus_on_histograms() {
    use photon_rt::{
        process,
        time::{Duration, sleep, timeout},
    };
    let begin = crate::random::BEGIN;
    let mut rng = Rng::new(42);
    let mut data = Memory::default();
    for s in ["1", "2", "3"] {
        let mut h =
            Histogram { schema: 1 + rng.below(3) as i8, zero_threshold: 0.001, ..Histogram::default() };
        (h.zero_count, h.count) = (1e6, 1e6);
        for k in 0..SAMPLES {
            if rng.percent(2) && h.schema > 0 {
                h = h.reduced(h.schema - 1);
            }
            for _ in 0..rng.below(6) {
                let i = rng.below(12) as i32 - 4;
                let side = if rng.percent(70) { &mut h.positive } else { &mut h.negative };
                match side.binary_search_by_key(&i, |b| b.0) {
                    Ok(at) => side[at].1 += 1.0,
                    Err(at) => side.insert(at, (i, 1.0)),
                }
                h.count += 1.0;
                h.sum += rng.below(80) as f64 / 8.0;
            }
            if rng.percent(90) {
                let labels = Labels::of(&[("__name__", "h"), ("s", s)]);
                let t = begin + k * STEP + rng.below(500) as i64;
                data.put(&labels, t, Point::Histogram(Arc::new(h.clone()))).expect("in order");
            }
        }
    }
    let dir = tempfile::tempdir().expect("folder");
    let config = dir.path().join("prometheus.yml");
    photon_rt::fs::write_atomic(&config, b"global: {}\n", 0o600).expect("config");
    let free = photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("a port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let _child = process::command("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg("--storage.tsdb.retention.time=100y")
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .args([
            "--web.enable-remote-write-receiver",
            "--enable-feature=native-histograms",
            "--log.level=error",
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .expect("prometheus is installed by ./dev setup");
    let ready = async {
        let up = || crate::prometheus::request(port, "GET", "/-/ready", "", "").is_ok_and(|a| a.0 == 200);
        while !up() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), "prometheus", ready).await.expect("ready");
    let head = "Content-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\nX-Prometheus-Remote-Write-Version: 0.1.0\r\n";
    let sent = post(port, "/api/v1/write", head, &message(&data)).expect("an answer");
    assert_eq!(sent.0, 204, "{}", sent.1);
    let (mut answers, mut natives) = (0, 0);
    for k in 0..400u64 {
        let mut rng = Rng::new(500_000 + k);
        let range = ["45s", "1m", "5m", "10m"][rng.below(4) as usize];
        let inner = match rng.below(3) {
            0 => "h".to_string(),
            1 => format!("rate(h[{range}])"),
            _ => format!("increase(h[{range}])"),
        };
        let by = ["", " by (s)", " without (s)"][rng.below(3) as usize];
        let text = match rng.below(6) {
            0 => inner,
            1 => format!("sum{by}({inner})"),
            2 => format!("histogram_count(sum{by}({inner}))"),
            3 => format!("histogram_sum({inner})"),
            4 => format!("count{by}({inner})"),
            _ => format!("{inner} + ignoring (__name__) {inner}"),
        };
        let t = begin + 7_500 + STEP * rng.below(SAMPLES as u64) as i64;
        let form = format!("query={}&time={}.{:03}", crate::prometheus::escape(&text), t / 1000, t % 1000);
        let head = "Content-Type: application/x-www-form-urlencoded\r\n";
        let (_, body) = post(port, "/api/v1/query", head, form.as_bytes()).expect("an answer");
        let json: serde_json::Value = serde_json::from_str(&body).expect("json");
        assert_eq!(json["status"], "success", "{text}: {body}");
        let mut want: Vec<(String, Vec<f64>)> = json["data"]["result"]
            .as_array()
            .expect("result")
            .iter()
            .map(|s| (s["metric"]["s"].as_str().unwrap_or_default().to_string(), numbers(s)))
            .collect();
        want.sort_by(|a, b| a.0.cmp(&b.0));
        let e = parse(&text).expect("a query");
        let got = run(&data, &text, &e, query((t, t, 0)), &Cancel::default()).expect("an answer");
        let Value::Vector(got) = got.value else { panic!("{text}: no vector") };
        assert_eq!(got.len(), want.len(), "{text} at {t}: {body}");
        for ((labels, _, p), (s, w)) in got.iter().zip(&want) {
            let ours = match p {
                Point::Number(v) => vec![*v],
                Point::Histogram(h) => {
                    let number = |v: f64| nightlight::promql::number(v);
                    let json: serde_json::Value = serde_json::from_str(&h.json(&number)).expect("json");
                    numbers(&serde_json::json!({ "histogram": [0, json] }))
                }
            };
            let same = ours.len() == w.len() && ours.iter().zip(w).all(|(a, b)| close(*a, *b));
            assert!(labels.get("s") == s && same, "{text} at {t}: {labels}\nours   {ours:?}\ntheirs {w:?}");
            natives += usize::from(w.len() > 1);
        }
        answers += usize::from(!want.is_empty());
    }
    println!("{answers} answers, {natives} histograms");
    assert!(answers > 300 && natives > 300, "{answers} {natives}");
}

//! A slow evaluator, written from Prometheus' documentation without a look at the engine: one instant at a time, every
//! window collected anew, every pair of series compared. The engine has to agree with it.

use crate::random::{Dialect, Random};
use nightlight::{
    engine::{Cancel, Memory, Query, Value, is_stale, run},
    labels::Labels,
    promql::{Expr, Type, ast::*, duration, parse},
};
use photon_rt::entropy::Rng;

type Vector = Vec<(Labels, f64)>;
type Matrix = Vec<(Labels, Vec<(i64, f64)>)>;

struct Slow<'a> {
    data: &'a Memory,
    query: Query,
}

fn matched(data: &Memory, s: &Selector, t: i64, range: i64) -> Matrix {
    let mut out = Vec::new();
    for (labels, samples) in data.iter() {
        if s.matchers.iter().all(|m| m.matches(labels.get(&m.name))) {
            let all = samples.t.iter().copied().zip(samples.v.iter().copied());
            let window: Vec<_> = all.filter(|(at, _)| *at > t - range && *at <= t).collect();
            if !window.is_empty() {
                out.push((labels.clone(), window));
            }
        }
    }
    out
}

fn no_doubles(v: Vector) -> Result<Vector, String> {
    for (i, a) in v.iter().enumerate() {
        if v[..i].iter().any(|b| a.0 == b.0) {
            return Err("same labelset".into());
        }
    }
    Ok(v)
}

fn rank(q: f64, mut v: Vec<f64>) -> f64 {
    v.sort_by(|a, b| match (a.is_nan(), b.is_nan()) {
        (false, false) => a.partial_cmp(b).expect("numbers"),
        (x, y) => y.cmp(&x),
    });
    if q < 0.0 {
        f64::NEG_INFINITY
    } else if q > 1.0 {
        f64::INFINITY
    } else {
        let at = q * (v.len() as f64 - 1.0);
        let (low, part) = (at.floor(), at - at.floor());
        let high = (low + 1.0).min(v.len() as f64 - 1.0);
        v[low as usize] * (1.0 - part) + v[high as usize] * part
    }
}

fn spread(v: &[f64]) -> f64 {
    let mean = v.iter().sum::<f64>() / v.len() as f64;
    v.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / v.len() as f64
}

/// Slope a second and value at `zero` of the line through the points.
fn line(p: &[(i64, f64)], zero: i64) -> (f64, f64) {
    if p.iter().all(|x| x.1 == p[0].1) {
        return (0.0, p[0].1);
    }
    let n = p.len() as f64;
    let xs: Vec<f64> = p.iter().map(|x| (x.0 - zero) as f64 / 1000.0).collect();
    let (mx, my) = (xs.iter().sum::<f64>() / n, p.iter().map(|x| x.1).sum::<f64>() / n);
    let top: f64 = xs.iter().zip(p).map(|(x, y)| (x - mx) * (y.1 - my)).sum();
    let slope = top / xs.iter().map(|x| (x - mx) * (x - mx)).sum::<f64>();
    (slope, my - slope * mx)
}

fn extrapolated(name: &str, p: &[(i64, f64)], t: i64, range: i64) -> f64 {
    let (first, last) = (p[0], p[p.len() - 1]);
    let mut rise = last.1 - first.1;
    if name != "delta" {
        rise += p.windows(2).filter(|w| w[1].1 < w[0].1).map(|w| w[0].1).sum::<f64>();
    }
    let span = (last.0 - first.0) as f64;
    let gap = span / (p.len() - 1) as f64;
    let reach = |d: i64| if (d as f64) < gap * 1.1 { d as f64 } else { gap / 2.0 };
    let (mut before, after) = (reach(first.0 - (t - range)), reach(t - last.0));
    if name != "delta" && rise > 0.0 && first.1 >= 0.0 {
        before = before.min(span * first.1 / rise);
    }
    rise * (span + before + after) / span / if name == "rate" { range as f64 / 1000.0 } else { 1.0 }
}

fn over_time(name: &str, p: &[(i64, f64)], t: i64, range: i64, arg: f64) -> Option<f64> {
    let v: Vec<f64> = p.iter().map(|x| x.1).collect();
    let numbers = || v.iter().copied().filter(|x| !x.is_nan());
    let (n, two) = (v.len(), v.len() >= 2);
    Some(match name {
        "sum_over_time" => v.iter().sum(),
        "avg_over_time" => v.iter().sum::<f64>() / n as f64,
        "min_over_time" => numbers().reduce(f64::min).unwrap_or(f64::NAN),
        "max_over_time" => numbers().reduce(f64::max).unwrap_or(f64::NAN),
        "count_over_time" => n as f64,
        "last_over_time" => v[n - 1],
        "present_over_time" => 1.0,
        "stddev_over_time" => spread(&v).sqrt(),
        "stdvar_over_time" => spread(&v),
        "quantile_over_time" => rank(arg, v),
        "changes" => {
            v.windows(2).filter(|w| w[0] != w[1] && !(w[0].is_nan() && w[1].is_nan())).count() as f64
        }
        "resets" => v.windows(2).filter(|w| w[1] < w[0]).count() as f64,
        "rate" | "increase" | "delta" if two => extrapolated(name, p, t, range),
        "idelta" if two => v[n - 1] - v[n - 2],
        "irate" if two => {
            let rise = if v[n - 1] < v[n - 2] { v[n - 1] } else { v[n - 1] - v[n - 2] };
            rise / ((p[n - 1].0 - p[n - 2].0) as f64 / 1000.0)
        }
        "deriv" if two => line(p, p[0].0).0,
        _ => return None,
    })
}

impl Slow<'_> {
    fn instant(&self, w: &When, t: i64) -> i64 {
        let base = match w.at {
            Some(At::Ms(ms)) => ms,
            Some(At::Start) => self.query.start_ms,
            Some(At::End) => self.query.end_ms,
            None => t,
        };
        base - w.offset.as_ref().map_or(0, |d| self.ms(d))
    }

    fn ms(&self, d: &Duration) -> i64 {
        let q = self.query;
        duration::resolve(d, q.step_ms, q.end_ms - q.start_ms).expect("duration")
    }

    /// Samples of the window that ends at `t`, its end after modifiers, and its length.
    fn matrix(&self, e: &Expr, t: i64) -> Result<(Matrix, i64, i64), String> {
        match &e.bare().kind {
            Kind::Range { selector, range } => {
                let (end, range) = (self.instant(&selector.when, t), self.ms(range));
                let mut all = matched(self.data, selector, end, range);
                all.iter_mut().for_each(|s| s.1.retain(|x| !is_stale(x.1)));
                all.retain(|s| !s.1.is_empty());
                Ok((all, end, range))
            }
            Kind::Subquery(s) => {
                let (end, range) = (self.instant(&s.when, t), self.ms(&s.range));
                let step = s.step.as_ref().map_or(60_000, |d| self.ms(d));
                let mut all = Matrix::new();
                for at in (end - range + 1)..=end {
                    if at % step != 0 {
                        continue;
                    }
                    for (l, v) in self.vector(&s.expr, at)? {
                        match all.iter_mut().find(|x| x.0 == l) {
                            Some(x) => x.1.push((at, v)),
                            None => all.push((l, vec![(at, v)])),
                        }
                    }
                }
                Ok((all, end, range))
            }
            _ => Err("no range".into()),
        }
    }

    fn scalar(&self, e: &Expr, t: i64) -> Result<f64, String> {
        Ok(match &e.kind {
            Kind::Number { value, .. } => *value,
            Kind::Paren(e) => self.scalar(e, t)?,
            Kind::Unary { negative, expr } => {
                let v = self.scalar(expr, t)?;
                if *negative { -v } else { v }
            }
            Kind::Call { function, .. } if function.name == "time" => t as f64 / 1000.0,
            Kind::Call { function, args } if function.name == "scalar" => {
                let v = self.vector(&args[0], t)?;
                if v.len() == 1 { v[0].1 } else { f64::NAN }
            }
            Kind::Binary(b) => arith(b.op, self.scalar(&b.lhs, t)?, self.scalar(&b.rhs, t)?),
            other => return Err(format!("no scalar {other:?}")),
        })
    }

    fn vector(&self, e: &Expr, t: i64) -> Result<Vector, String> {
        match &e.kind {
            Kind::Paren(e) => self.vector(e, t),
            Kind::Selector(s) => {
                let all = matched(self.data, s, self.instant(&s.when, t), 300_000);
                let last = all.into_iter().map(|(l, p)| (l, p[p.len() - 1].1));
                Ok(last.filter(|x| !is_stale(x.1)).collect())
            }
            Kind::Unary { negative, expr } => {
                let v = self.vector(expr, t)?;
                if !negative {
                    return Ok(v);
                }
                no_doubles(v.into_iter().map(|(l, v)| (l.nameless(), -v)).collect())
            }
            Kind::Aggregate(a) => self.aggregate(a, t),
            Kind::Binary(b) => self.binary(b, t),
            Kind::Call { function, args } => self.call(function.name, args, t),
            other => Err(format!("no vector {other:?}")),
        }
    }

    fn call(&self, name: &str, args: &[Expr], t: i64) -> Result<Vector, String> {
        if let Some(at) = args.iter().position(|a| a.ty() == Type::Matrix) {
            let (all, end, range) = self.matrix(&args[at], t)?;
            if name == "absent_over_time" {
                let there = !all.is_empty();
                return Ok(if there { Vec::new() } else { vec![(absent_labels(&args[at]), 1.0)] });
            }
            let arg = if at == 1 { self.scalar(&args[0], t)? } else { 0.0 };
            let mut out = Vec::new();
            for (l, p) in all {
                let v = match name {
                    "predict_linear" if p.len() >= 2 => {
                        let (slope, at_t) = line(&p, t);
                        Some(at_t + slope * self.scalar(&args[1], t)?)
                    }
                    _ => over_time(name, &p, end, range, arg),
                };
                let l = if name == "last_over_time" { l } else { l.nameless() };
                out.extend(v.map(|v| (l, v)));
            }
            return no_doubles(out);
        }
        let arg = |i: usize| match &args[i].kind {
            Kind::String(s) => s.clone(),
            _ => String::new(),
        };
        if name == "histogram_quantile" {
            return self.histogram(self.scalar(&args[0], t)?, self.vector(&args[1], t)?);
        }
        let v = self.vector(&args[0], t)?;
        let each =
            |f: &dyn Fn(f64) -> f64| no_doubles(v.iter().map(|(l, v)| (l.nameless(), f(*v))).collect());
        match name {
            "absent" => Ok(if v.is_empty() { vec![(absent_labels(&args[0]), 1.0)] } else { Vec::new() }),
            "timestamp" => match &args[0].bare().kind {
                Kind::Selector(s) => {
                    let all = matched(self.data, s, self.instant(&s.when, t), 300_000);
                    let last = all.into_iter().map(|(l, p)| (l.nameless(), p[p.len() - 1]));
                    let last = last.filter(|x| !is_stale(x.1.1)).map(|(l, p)| (l, p.0 as f64 / 1000.0));
                    no_doubles(last.collect())
                }
                _ => each(&|_| t as f64 / 1000.0),
            },
            "clamp" => {
                let (low, high) = (self.scalar(&args[1], t)?, self.scalar(&args[2], t)?);
                if low > high {
                    return Ok(Vec::new());
                }
                let any = |x: f64| x.is_nan() || low.is_nan() || high.is_nan();
                each(&|x| if any(x) { f64::NAN } else { x.min(high).max(low) })
            }
            "round" => {
                let to = self.scalar(&args[1], t)?;
                each(&|x| (x / to + 0.5).floor() * to)
            }
            "floor" => each(&f64::floor),
            "abs" => each(&f64::abs),
            "sqrt" => each(&f64::sqrt),
            "exp" => each(&f64::exp),
            "ln" => each(&f64::ln),
            "log2" => each(&f64::log2),
            "deg" => each(&f64::to_degrees),
            "atan" => each(&f64::atan),
            "sinh" => each(&f64::sinh),
            "sgn" => each(&|x| {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    x
                }
            }),
            "hour" => each(&|x| {
                if x.is_finite() { ((x as i64).rem_euclid(86_400) / 3600) as f64 } else { f64::NAN }
            }),
            "label_replace" => no_doubles(
                v.into_iter()
                    .map(|(l, v)| {
                        let inst = l.get(&arg(3)).to_string();
                        let hit = inst == "1" || inst == "2";
                        (if hit { l.with(&arg(1), &format!("{inst}-y")) } else { l }, v)
                    })
                    .collect(),
            ),
            "label_join" => no_doubles(
                v.into_iter()
                    .map(|(l, v)| {
                        let joined = format!("{}{}{}", l.get(&arg(3)), arg(2), l.get(&arg(4)));
                        (l.with(&arg(1), &joined), v)
                    })
                    .collect(),
            ),
            _ => Err(format!("no function {name}")),
        }
    }

    fn histogram(&self, q: f64, v: Vector) -> Result<Vector, String> {
        let mut out: Vec<(Labels, Vec<(f64, f64)>)> = Vec::new();
        for (l, v) in v {
            let Ok(le) = l.get("le").parse::<f64>() else { continue };
            let rest = l.nameless().with("le", "");
            match out.iter_mut().find(|x| x.0 == rest) {
                Some(x) => x.1.push((le, v)),
                None => out.push((rest, vec![(le, v)])),
            }
        }
        let mut result = Vec::new();
        for (l, mut b) in out {
            b.sort_by(|x, y| x.0.partial_cmp(&y.0).expect("bounds"));
            let total = b[b.len() - 1].1;
            let value = if b.len() < 2 || b[b.len() - 1].0 != f64::INFINITY || total == 0.0 || total.is_nan()
            {
                f64::NAN
            } else {
                let wanted = q * total;
                let at = b.iter().position(|x| x.1 >= wanted).unwrap_or(b.len() - 1);
                if at == b.len() - 1 {
                    b[at - 1].0
                } else {
                    let (lower, below) = if at == 0 { (0.0, 0.0) } else { b[at - 1] };
                    lower + (b[at].0 - lower) * (wanted - below) / (b[at].1 - below)
                }
            };
            result.push((l, value));
        }
        Ok(result)
    }

    fn aggregate(&self, a: &Aggregate, t: i64) -> Result<Vector, String> {
        let mut groups: Vec<(Labels, Vector)> = Vec::new();
        for (l, v) in self.vector(&a.expr, t)? {
            let keep = |name: &str| {
                let named = a.grouping.iter().any(|g| **g == *name);
                if a.without { !named && name != "__name__" } else { named }
            };
            let key = l.filter(keep);
            match groups.iter_mut().find(|g| g.0 == key) {
                Some(g) => g.1.push((l, v)),
                None => groups.push((key, vec![(l, v)])),
            }
        }
        let mut out: Vector = Vec::new();
        for (key, members) in groups {
            let v: Vec<f64> = members.iter().map(|m| m.1).collect();
            let numbers = || v.iter().copied().filter(|x| !x.is_nan());
            let p = match &a.param {
                Some(p) if p.ty() == Type::Scalar => self.scalar(p, t)?,
                _ => 0.0,
            };
            let value = match a.op {
                AggOp::Sum => v.iter().sum(),
                AggOp::Avg => v.iter().sum::<f64>() / v.len() as f64,
                AggOp::Count => v.len() as f64,
                AggOp::Group => 1.0,
                AggOp::Min => numbers().reduce(f64::min).unwrap_or(f64::NAN),
                AggOp::Max => numbers().reduce(f64::max).unwrap_or(f64::NAN),
                AggOp::Stdvar => spread(&v),
                AggOp::Stddev => spread(&v).sqrt(),
                AggOp::Quantile => rank(p, v),
                AggOp::CountValues => {
                    for x in &v {
                        let label = key.with("v", &nightlight::promql::number(*x));
                        let n = v.iter().filter(|y| **y == *x).count() as f64;
                        if !out.iter().any(|o| o.0 == label) {
                            out.push((label, n));
                        }
                    }
                    continue;
                }
                AggOp::Topk | AggOp::Bottomk => {
                    let mut m = members;
                    m.sort_by(|x, y| x.1.partial_cmp(&y.1).expect("numbers"));
                    if a.op == AggOp::Topk {
                        m.reverse();
                    }
                    m.truncate(p as usize);
                    out.extend(m);
                    continue;
                }
                _ => return Err("no such aggregation".into()),
            };
            out.push((key, value));
        }
        Ok(out)
    }

    fn binary(&self, b: &Binary, t: i64) -> Result<Vector, String> {
        let drops = b.return_bool || !b.op.is_comparison();
        let keep = |l: f64, r: f64, value: f64| {
            let v = arith(b.op, l, r);
            if !b.op.is_comparison() || b.return_bool { Some(v) } else { (v == 1.0).then_some(value) }
        };
        let scalar = |v: Vector, f: &dyn Fn(f64) -> Option<f64>| {
            let kept = v.into_iter().filter_map(|(l, v)| Some((if drops { l.nameless() } else { l }, f(v)?)));
            no_doubles(kept.collect())
        };
        if b.rhs.ty() == Type::Scalar {
            let r = self.scalar(&b.rhs, t)?;
            return scalar(self.vector(&b.lhs, t)?, &|l| keep(l, r, l));
        }
        if b.lhs.ty() == Type::Scalar {
            let l = self.scalar(&b.lhs, t)?;
            return scalar(self.vector(&b.rhs, t)?, &|r| keep(l, r, r));
        }
        let (l, r) = (self.vector(&b.lhs, t)?, self.vector(&b.rhs, t)?);
        let m = &b.matching;
        let key = |l: &Labels| {
            l.filter(|n| {
                let named = m.labels.iter().any(|x| **x == *n);
                if m.on { named } else { !named && n != "__name__" }
            })
        };
        let has = |v: &Vector, l: &Labels| v.iter().any(|x| key(&x.0) == key(l));
        match b.op {
            Op::And => return Ok(l.into_iter().filter(|x| has(&r, &x.0)).collect()),
            Op::Unless => return Ok(l.into_iter().filter(|x| !has(&r, &x.0)).collect()),
            Op::Or => {
                let more: Vector = r.into_iter().filter(|x| !has(&l, &x.0)).collect();
                return no_doubles(l.into_iter().chain(more).collect());
            }
            _ => {}
        }
        let (many, one, turned) = if m.card == Card::OneToMany { (r, l, true) } else { (l, r, false) };
        if many.is_empty() {
            return Ok(Vec::new());
        }
        for (i, x) in one.iter().enumerate() {
            if one[..i].iter().any(|y| key(&x.0) == key(&y.0)) {
                return Err("found duplicate series".into());
            }
        }
        let mut out: Vec<(Labels, f64, Labels)> = Vec::new();
        for (ml, mv) in many {
            let Some((ol, ov)) = one.iter().find(|x| key(&x.0) == key(&ml)) else { continue };
            let (x, y) = if turned { (*ov, mv) } else { (mv, *ov) };
            let Some(v) = keep(x, y, x) else { continue };
            let mut labels = if drops { ml.nameless() } else { ml.clone() };
            if m.card == Card::OneToOne {
                labels = if m.on { labels.only(&m.labels) } else { labels.without(&m.labels) };
                if out.iter().any(|o| o.2 == key(&ml)) {
                    return Err("multiple matches for labels".into());
                }
            }
            for i in &m.include {
                labels = labels.with(i, ol.get(i));
            }
            out.push((labels, v, key(&ml)));
        }
        no_doubles(out.into_iter().map(|(l, v, _)| (l, v)).collect())
    }
}

fn absent_labels(e: &Expr) -> Labels {
    let mut out = Labels::default();
    if let Kind::Selector(s) | Kind::Range { selector: s, .. } = &e.bare().kind {
        for m in s.matchers.iter().filter(|m| m.op.as_str() == "=" && &*m.name != "__name__") {
            out = out.with(&m.name, &m.value);
        }
    }
    out
}

fn arith(op: Op, l: f64, r: f64) -> f64 {
    let truth = |b: bool| if b { 1.0 } else { 0.0 };
    match op {
        Op::Add => l + r,
        Op::Sub => l - r,
        Op::Mul => l * r,
        Op::Div => l / r,
        Op::Mod => l % r,
        Op::Pow => l.powf(r),
        Op::Atan2 => l.atan2(r),
        Op::Eq => truth(l == r),
        Op::Ne => truth(l != r),
        Op::Lt => truth(l < r),
        Op::Le => truth(l <= r),
        Op::Gt => truth(l > r),
        Op::Ge => truth(l >= r),
        _ => f64::NAN,
    }
}

/// Equal but for rounding.
pub fn close(a: f64, b: f64) -> bool {
    a.to_bits() == b.to_bits()
        || (a.is_nan() && b.is_nan())
        || a == b
        || (a.is_finite() && b.is_finite() && (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0))
}

/// Every point of an answer: series, instant, value; sorted.
pub fn points(v: &Value) -> Vec<(Labels, i64, f64)> {
    let mut out = match v {
        Value::Scalar(t, v) => vec![(Labels::default(), *t, *v)],
        Value::Vector(v) => {
            v.iter().map(|(l, t, p)| (l.clone(), *t, p.number().expect("a number"))).collect()
        }
        Value::String(..) => Vec::new(),
        Value::Matrix(m) => {
            let each = |(l, s): &(Labels, nightlight::engine::Samples)| {
                s.t.iter().zip(&s.v).map(|(t, v)| (l.clone(), *t, *v)).collect::<Vec<_>>()
            };
            m.iter().flat_map(each).collect()
        }
    };
    out.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    out
}

pub fn query((start, end, step): (i64, i64, i64)) -> Query {
    if step == 0 { Query::instant(start) } else { Query::range(start, end, step) }
}

/// The first difference between two answers.
pub fn difference(a: &[(Labels, i64, f64)], b: &[(Labels, i64, f64)]) -> Option<String> {
    for (x, y) in a.iter().zip(b) {
        if x.0 != y.0 || x.1 != y.1 || !close(x.2, y.2) {
            return Some(format!("{} {} {} against {} {} {}", x.0, x.1, x.2, y.0, y.1, y.2));
        }
    }
    (a.len() != b.len()).then(|| format!("{} points against {}", a.len(), b.len()))
}

/// What the slow evaluator says.
fn slow(data: &Memory, e: &Expr, q: Query) -> Result<Vec<(Labels, i64, f64)>, String> {
    let slow = Slow { data, query: q };
    let mut out = Vec::new();
    let mut t = q.start_ms;
    while t <= q.end_ms {
        out.extend(slow.vector(e, t)?.into_iter().map(|(l, v)| (l, t, v)));
        t += q.step_ms.max(1);
    }
    out.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    Ok(out)
}

#[test]
fn the_engine_agrees_with_the_slow_evaluator() {
    let (mut answers, mut errors, mut empty) = (0, 0, 0);
    for seed in 0..20 {
        let mut r = Random::new(seed, Dialect::Whole);
        let data = r.samples();
        for k in 0..100 {
            r.rng = Rng::new(seed * 1000 + k);
            let text = r.vector(3);
            let when = r.when();
            // The slow evaluator is too slow for subqueries over many steps.
            let when = if text.contains(':') { (when.0, when.0, 0) } else { when };
            let q = query(when);
            let e = parse(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let ours = run(&data, &text, &e, q, &Cancel::default());
            match (slow(&data, &e, q), ours) {
                (Ok(want), Ok(got)) => {
                    if let Some(d) = difference(&points(&got.value), &want) {
                        panic!("seed {seed} query {k}: {text} at {when:?}: {d}");
                    }
                    answers += usize::from(!want.is_empty());
                    empty += usize::from(want.is_empty());
                }
                (Err(_), Err(_)) => errors += 1,
                // Functions over ranges refuse doubles even where they never meet (Prometheus does too).
                (Ok(_), Err(e)) if e.to_string().contains("same labelset") => errors += 1,
                (want, got) => {
                    let want = want.map(|w| w.len());
                    panic!("seed {seed} query {k}: {text} at {when:?}: engine {got:?}, slow {want:?}");
                }
            }
        }
    }
    println!("{answers} answers, {empty} empty, {errors} errors");
    assert!(answers > 1000, "too few queries had an answer: {answers}");
}

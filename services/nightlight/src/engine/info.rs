//! `info()`: labels of info metrics joined to series that have the same `job` and `instance`.

use super::{
    Column, Error, Grid, Series,
    eval::{Eval, Sink},
    fail,
};
use crate::{
    labels::{Labels, MatchOp, Matcher, NAME, Str},
    promql::{Expr, ast::*},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What identifies the target that series and info metric come from.
const IDENTITY: [&str; 2] = ["instance", "job"];
/// The info metric when none is named.
const DEFAULT: &str = "target_info";

/// Which instants the first selector of an expression reads: the info metric is read there too.
fn first_when(e: &Expr) -> Option<&When> {
    match &e.kind {
        Kind::Number { .. } | Kind::String(_) => None,
        Kind::Selector(s) | Kind::Range { selector: s, .. } => Some(&s.when),
        Kind::Subquery(s) => first_when(&s.expr),
        Kind::Paren(e) | Kind::Unary { expr: e, .. } => first_when(e),
        Kind::Binary(b) => first_when(&b.lhs).or_else(|| first_when(&b.rhs)),
        Kind::Aggregate(a) => a.param.as_ref().and_then(first_when).or_else(|| first_when(&a.expr)),
        Kind::Call { args, .. } => args.iter().find_map(first_when),
    }
}

/// Info series of one metric and target, with the instants of their samples.
type Candidates = Vec<Series>;

pub(super) fn eval(ev: &Eval<'_>, args: &[Expr], g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let selected: &[Matcher] = match args.get(1).map(|a| &a.bare().kind) {
        Some(Kind::Selector(s)) => &s.matchers,
        _ => &[],
    };
    let (mut names, data): (Vec<Matcher>, Vec<Matcher>) =
        selected.iter().cloned().partition(|m| &*m.name == NAME);
    if names.is_empty() {
        names.push(Matcher::new(NAME, MatchOp::Equal, DEFAULT).map_err(Error::Execution)?);
    }
    let is_info = |l: &Labels| names.iter().all(|m| m.matches(l.name()));
    let identity = |l: &Labels| IDENTITY.map(|n| Str::from(l.get(n)));
    let mut base: Vec<Series> = Vec::new();
    ev.vector(&args[0], g, &mut |s| {
        ev.hold(s.col.weight())?;
        base.push(s);
        Ok(())
    })?;
    let wanted: BTreeSet<[Str; 2]> =
        base.iter().filter(|s| !is_info(&s.labels)).map(|s| identity(&s.labels)).collect();
    let mut infos: HashMap<(Str, [Str; 2]), Candidates> = HashMap::new();
    if wanted.iter().any(|i| i.iter().any(|v| !v.is_empty())) {
        let matchers = names.iter().chain(&data).cloned().collect();
        let when = first_when(&args[0]).cloned().unwrap_or_default();
        let selector = Selector { matchers, when, ..Selector::default() };
        ev.selector(&selector, g, true, &mut |s| {
            let id = identity(&s.labels);
            if wanted.contains(&id) {
                ev.hold(g.n)?;
                infos.entry((s.labels.name().into(), id)).or_default().push(s);
            }
            Ok(())
        })?;
    }
    let metrics: BTreeSet<Str> = infos.keys().map(|k| k.0.clone()).collect();
    // Without a match a series stays as it is, unless a label was asked for that then is not there.
    let may_be_alone = data.iter().all(|m| m.matches(""));
    let mut out = ev.distinct(true);
    for s in base {
        if is_info(&s.labels) {
            out.pass(s, &mut *sink)?;
            continue;
        }
        let id = identity(&s.labels);
        let of: Vec<&Candidates> =
            metrics.iter().filter_map(|m| infos.get(&(m.clone(), id.clone()))).collect();
        // The info series may change from step to step, and the labels that they give with them.
        let mut parts: BTreeMap<Vec<Option<usize>>, Column> = BTreeMap::new();
        for i in 0..g.n {
            let Some(p) = s.col.point(i) else { continue };
            let chosen = of.iter().map(|c| newest(c, i)).collect::<Result<Vec<_>, _>>()?;
            if chosen.iter().all(Option::is_none) && !may_be_alone {
                continue;
            }
            parts.entry(chosen).or_insert_with(|| Column::empty(g.n)).put(i, p);
        }
        for (chosen, col) in parts {
            let found = of.iter().zip(chosen).filter_map(|(c, i)| i.map(|i| &c[i].labels));
            let labels = join(&s.labels, found, &data)?;
            out.pass(Series { labels, col }, &mut *sink)?;
        }
    }
    out.end(sink)
}

/// Which info series has the newest sample at a step.
fn newest(all: &Candidates, i: usize) -> Result<Option<usize>, Error> {
    let mut best: Option<(usize, f64)> = None;
    for (k, s) in all.iter().enumerate() {
        let Some(t) = s.col.get(i) else { continue };
        match best {
            Some((b, at)) if at == t => {
                let ms = (t * 1000.0) as i64;
                return fail(format!(
                    "found duplicate series for info metric: existing {} @ {ms}, new {} @ {ms}",
                    all[b].labels, s.labels
                ));
            }
            Some((_, at)) if at > t => {}
            _ => best = Some((k, t)),
        }
    }
    Ok(best.map(|b| b.0))
}

fn join<'l>(
    base: &Labels,
    infos: impl Iterator<Item = &'l Labels>,
    data: &[Matcher],
) -> Result<Labels, Error> {
    let mut added = Labels::default();
    for info in infos {
        for (name, value) in info.iter().filter(|(n, _)| &***n != NAME) {
            if !data.is_empty() && !data.iter().any(|m| m.name == *name) {
                continue;
            }
            let before = added.get(name);
            if !before.is_empty() && *before != **value {
                return fail(format!("conflicting label: {name}"));
            }
            if base.get(name).is_empty() {
                added = added.with(name, value);
            }
        }
    }
    Ok(added.iter().fold(base.clone(), |l, (n, v)| l.with(n, v)))
}

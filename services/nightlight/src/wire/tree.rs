//! `/api/v1/parse_query`: a query's tree as JSON, in Prometheus' form.

use crate::{
    labels::{Matcher, Str},
    promql::{
        Expr,
        ast::{At, Card, Duration, Ends, Kind, Selector, When},
        duration::resolve,
    },
};
use serde_json::{Map, Value, json};

/// The tree; its height is bounded by the parser.
pub(super) fn tree(e: &Expr) -> Value {
    match &e.kind {
        Kind::Number { value, .. } => {
            json!({ "type": "numberLiteral", "val": crate::promql::number(*value) })
        }
        Kind::String(s) => json!({ "type": "stringLiteral", "val": s }),
        Kind::Paren(inner) => json!({ "type": "parenExpr", "expr": tree(inner) }),
        Kind::Unary { negative, expr } => {
            json!({ "type": "unaryExpr", "op": if *negative { "-" } else { "+" }, "expr": tree(expr) })
        }
        Kind::Selector(s) => Value::Object(selector("vectorSelector", s)),
        Kind::Range { selector: s, range } => {
            let mut m = selector("matrixSelector", s);
            m.insert("range".into(), length(Some(range)));
            Value::Object(m)
        }
        Kind::Subquery(s) => {
            let mut m = Map::new();
            m.insert("type".into(), "subquery".into());
            m.insert("expr".into(), tree(&s.expr));
            m.insert("range".into(), length(Some(&s.range)));
            m.insert("step".into(), length(s.step.as_ref()));
            when(&s.when, &mut m);
            Value::Object(m)
        }
        Kind::Call { function, args } => json!({
            "type": "call",
            "func": {
                "name": function.name,
                "argTypes": function.args.iter().map(|t| t.api()).collect::<Vec<_>>(),
                "variadic": function.optional,
                "returnType": function.returns.api(),
            },
            "args": args.iter().map(tree).collect::<Vec<_>>(),
        }),
        Kind::Aggregate(a) => json!({
            "type": "aggregation",
            "op": a.op.as_str(),
            "expr": tree(&a.expr),
            "param": a.param.as_ref().map(tree),
            "grouping": names(&a.grouping),
            "without": a.without,
        }),
        Kind::Binary(b) => {
            let scalars = [&b.lhs, &b.rhs].iter().any(|s| s.ty() == crate::promql::Type::Scalar);
            let m = &b.matching;
            let card = match m.card {
                _ if b.op.is_set() => "many-to-many",
                Card::OneToOne => "one-to-one",
                Card::ManyToOne => "many-to-one",
                Card::OneToMany => "one-to-many",
            };
            let matching = (!scalars).then(|| {
                json!({
                    "card": card,
                    "labels": names(&m.labels),
                    "on": m.on,
                    "include": names(&m.include),
                    "fillValues": { "lhs": m.fill_left, "rhs": m.fill_right },
                })
            });
            json!({
                "type": "binaryExpr",
                "op": b.op.as_str(),
                "lhs": tree(&b.lhs),
                "rhs": tree(&b.rhs),
                "matching": matching,
                "bool": b.return_bool,
            })
        }
    }
}

fn names(all: &[Str]) -> Value {
    all.iter().map(|n| Value::from(&**n)).collect::<Vec<_>>().into()
}

/// Milliseconds; 0 if it is not said, or depends on the query's own step.
fn length(d: Option<&Duration>) -> Value {
    d.and_then(|d| resolve(d, 0, 0).ok()).unwrap_or(0).into()
}

fn selector(kind: &str, s: &Selector) -> Map<String, Value> {
    let mut m = Map::new();
    m.insert("type".into(), kind.into());
    m.insert("name".into(), s.name.as_deref().unwrap_or_default().into());
    m.insert("matchers".into(), s.matchers.iter().map(matcher).collect::<Vec<_>>().into());
    m.insert("anchored".into(), (s.ends == Ends::Anchored).into());
    m.insert("smoothed".into(), (s.ends == Ends::Smoothed).into());
    when(&s.when, &mut m);
    m
}

fn matcher(m: &Matcher) -> Value {
    json!({ "name": &*m.name, "value": &*m.value, "type": m.op.as_str() })
}

fn when(w: &When, m: &mut Map<String, Value>) {
    m.insert("offset".into(), length(w.offset.as_ref()));
    let (at, end) = match w.at {
        None => (Value::Null, Value::Null),
        Some(At::Ms(ms)) => (ms.into(), Value::Null),
        Some(At::Start) => (Value::Null, "start".into()),
        Some(At::End) => (Value::Null, "end".into()),
    };
    m.insert("timestamp".into(), at);
    m.insert("startOrEnd".into(), end);
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_tree_has_prometheus_names() {
        let text =
            r#"sum by (job) (rate(x{a=~"b"}[5m] offset 1m)) / on (job) group_left (c) y @ start() > bool 2"#;
        let t = super::tree(&crate::promql::parse(text).expect("valid"));
        assert_eq!((&t["type"], &t["op"], &t["bool"]), (&"binaryExpr".into(), &">".into(), &true.into()));
        assert!(t["matching"].is_null());
        let quotient = &t["lhs"];
        assert_eq!(quotient["matching"]["card"], "many-to-one");
        assert_eq!(quotient["matching"]["include"][0], "c");
        assert_eq!(quotient["rhs"]["startOrEnd"], "start");
        let range = &quotient["lhs"]["expr"]["args"][0];
        assert_eq!((&range["range"], &range["offset"]), (&300_000.into(), &60_000.into()));
        assert_eq!(range["matchers"][0], serde_json::json!({ "name": "a", "value": "b", "type": "=~" }));
    }
}

//! What the parser takes, prints and refuses.

use super::*;

fn parsed(text: &str) -> Expr {
    parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn what_prometheus_prints_is_printed() {
    for text in [
        "1",
        "+Inf",
        "5m",
        "\"a\\\"b\\n\"",
        "up",
        "{__name__=\"up\"}",
        "up{a=\"b\",c!=\"d\",e=~\"f.*\",g!~\"h|i\"}",
        "{\"a.b\",\"c d\"=\"e\"}",
        "rate(x[5m])",
        "rate(x[5m] @ 1.500 offset -5m)",
        "x @ start() offset 1h30m",
        "max_over_time(rate(x[1m])[1h:30s] @ end() offset 5m)",
        "avg_over_time(x[1h:])",
        "sum(x)",
        "sum by (a, \"b.c\") (x)",
        "sum without () (x)",
        "topk without (by, on) (5, x)",
        "count_values(\"v\", x)",
        "limit_ratio(-0.5, x)",
        "a + on () b",
        "a * ignoring (x) group_left (y) b",
        "a / on (x) group_right () b",
        "a > bool 5",
        "a == b",
        "a + on (x) fill (0) b",
        "a + fill_left (1) fill_right (-2) b",
        "-x",
        "-(x ^ 2)",
        "a and b or c unless d",
        "a atan2 b",
        "histogram_quantile(0.9, sum by (le) (rate(x_bucket[5m])))",
        "increase(x[5m] anchored)",
        "x smoothed",
        "x[5m + step() * 2s]",
        "x[min_of(step(), 5m):max_of(1m, range())]",
        "x offset (1h + 5m)",
        "x offset -step()",
        "start() + end() + step() + range()",
        "sum",
        "by + on_ + offset",
        "time() - x",
        "label_replace(x, \"a\", \"$1\", \"b\", \"(.*)\")",
        "info(x, {a=\"b\"})",
    ] {
        let e = parsed(text);
        assert_eq!(e.to_string(), text);
        assert_eq!(e.span, Span { start: 0, end: text.len() as u32 }, "{text}");
    }
}

#[test]
fn other_spellings_mean_the_same() {
    for (text, printed) in [
        ("SUM(x) BY (a)", "sum by (a) (x)"),
        ("sum(x)without(a,)", "sum without (a) (x)"),
        ("x{a='b',}", "x{a=\"b\"}"),
        ("# comment\nx # more", "x"),
        ("-1 ^ 2", "-1 ^ 2"),
        ("--1", "1"),
        ("0x1f", "31"),
        ("1_000", "1000"),
        ("x[300]", "x[5m]"),
        ("x[5m:60]", "x[5m:1m]"),
        ("x offset 60", "x offset 1m"),
        ("{'up'}", "up"),
        ("x[min(1m, 2m)]", "x[min_of(1m, 2m)]"),
        ("a+b*c", "a + b * c"),
        ("x offset 5m @ 10", "x @ 10.000 offset 5m"),
    ] {
        assert_eq!(parsed(text).to_string(), printed, "{text}");
    }
}

#[test]
fn operators_bind_as_they_should() {
    let shape = |text: &str| {
        fn walk(e: &Expr) -> String {
            match &e.kind {
                Kind::Binary(b) => format!("({} {} {})", walk(&b.lhs), b.op.as_str(), walk(&b.rhs)),
                Kind::Unary { expr, .. } => format!("(-{})", walk(expr)),
                _ => e.to_string(),
            }
        }
        walk(&parsed(text))
    };
    assert_eq!(shape("a + b * c - d"), "((a + (b * c)) - d)");
    assert_eq!(shape("a ^ b ^ c"), "(a ^ (b ^ c))");
    assert_eq!(shape("-a ^ b"), "(-(a ^ b))");
    assert_eq!(shape("-a * b"), "((-a) * b)");
    assert_eq!(shape("a or b and c unless d == e"), "(a or ((b and c) unless (d == e)))");
    assert_eq!(shape("a ^ -b * c"), "((a ^ (-b)) * c)");
    assert_eq!(shape("a offset 1h + b"), "(a offset 1h + b)");
}

#[test]
fn errors_have_prometheus_words() {
    for (text, error) in [
        ("", "1:1: parse error: no expression found in input"),
        ("x @", "1:4: parse error: unexpected end of input in @, expected timestamp"),
        ("1 /", "1:4: parse error: unexpected end of input"),
        ("*1", "1:1: parse error: unexpected <op:*>"),
        ("(1))", "1:5: parse error: unexpected right parenthesis ')'"),
        ("((1)", "1:5: parse error: unclosed left parenthesis"),
        ("1\n+ $", "2:3: parse error: unexpected character: '$'"),
        ("a{", "1:3: parse error: unexpected end of input inside braces"),
        ("a{b}", "1:4: parse error: unexpected \"}\" in label matching, expected label matching operator"),
        ("a{b=c}", "1:5: parse error: unexpected identifier \"c\" in label matching, expected string"),
        (
            "a{b=\"c\" d=\"e\"}",
            "1:9: parse error: unexpected identifier \"d\" in label matching, expected \",\" or \"}\"",
        ),
        ("a{b!c}", "1:4: parse error: unexpected character after '!' inside braces: 'c'"),
        ("\"abc", "1:1: parse error: unterminated quoted string"),
        ("foo(x)", "1:1: parse error: unknown function with name \"foo\""),
        (
            "rate(x)",
            "1:6: parse error: expected type range vector in call to function \"rate\", got instant vector",
        ),
        ("rate()", "1:1: parse error: expected 1 argument(s) in call to \"rate\", got 0"),
        ("round(x, 1, 2)", "1:1: parse error: expected at most 2 argument(s) in call to \"round\", got 3"),
        (
            "label_join(x)",
            "1:1: parse error: expected at least 3 argument(s) in call to \"label_join\", got 1",
        ),
        ("sum()", "1:1: parse error: no arguments for aggregate expression provided"),
        (
            "topk(x)",
            "1:1: parse error: wrong number of arguments for aggregate expression provided, expected 2, got 1",
        ),
        ("topk(x, x)", "1:6: parse error: expected type scalar in aggregation parameter, got instant vector"),
        ("sum(1)", "1:5: parse error: expected type instant vector in aggregation expression, got scalar"),
        ("sum some_metric by (test)", "1:5: parse error: unexpected identifier \"some_metric\""),
        ("sum by (1) (x)", "1:9: parse error: unexpected number \"1\" in grouping opts, expected label"),
        ("1 == 1", "1:3: parse error: comparisons between scalars must use BOOL modifier"),
        ("1 + bool 1", "1:3: parse error: bool modifier can only be used on comparison operators"),
        ("1 or 1", "1:1: parse error: set operator \"or\" not allowed in binary scalar expression"),
        ("a or on (b) group_left (c) d", "1:1: parse error: no grouping allowed for \"or\" operation"),
        (
            "a + on (b) group_left (b) d",
            "1:3: parse error: label \"b\" must not occur in ON and GROUP clause at once",
        ),
        ("1 + on (b) a", "1:1: parse error: vector matching only allowed between instant vectors"),
        (
            "a[5m] + 1",
            "1:1: parse error: binary expression must contain only scalar and instant vector types",
        ),
        (
            "-a[5m]",
            "1:1: parse error: unary expression only allowed on expressions of type scalar or instant vector, got \"range vector\"",
        ),
        ("{}", "1:1: parse error: vector selector must contain at least one non-empty matcher"),
        ("{a=~\".*\"}", "1:1: parse error: vector selector must contain at least one non-empty matcher"),
        ("a{__name__=\"b\"}", "1:1: parse error: metric name must not be set twice: \"a\" or \"b\""),
        ("a[5m", "1:5: parse error: unclosed left bracket"),
        ("a[0s]", "1:3: parse error: duration must be greater than 0"),
        ("a[5m][1m]", "1:6: parse error: ranges only allowed for vector selectors"),
        ("a offset 5m[1m]", "1:12: parse error: no offset modifiers allowed before range"),
        (
            "1 offset 5m",
            "1:1: parse error: offset modifier must be preceded by an instant vector selector or range vector selector or a subquery",
        ),
        ("a offset 5m offset 5m", "1:1: parse error: offset may not be set multiple times"),
        ("1[5m:1m]", "1:1: parse error: subquery is only allowed on instant vector, got scalar instead"),
        ("rate(x[5m],)", "1:11: parse error: trailing commas not allowed in function call args"),
        ("1m1h", "1:1: parse error: not a valid duration string: \"1m1h\""),
        ("1a", "1:1: parse error: bad number or duration syntax: \"1a\""),
        ("a b", "1:3: parse error: unexpected identifier \"b\""),
        ("a]", "1:2: parse error: unexpected right bracket ']'"),
    ] {
        assert_eq!(parse(text).map_err(|e| e.to_string()).unwrap_err(), error, "{text}");
    }
}

#[test]
fn size_and_depth_are_bounded() {
    for n in [1000, 100_000] {
        for (left, middle, right) in [
            ("(", "1", ")"),
            ("-", "x", ""),
            ("abs(", "x", ")"),
            ("1+", "1", ""),
            ("sum(", "x", ")"),
            ("1^", "1", ""),
        ] {
            let text = format!("{}{middle}{}", left.repeat(n), right.repeat(n));
            let e = parse(&text).expect_err("too much").to_string();
            assert!(e.contains("at most"), "{e}");
        }
    }
    for n in [80, 240] {
        let chain = parsed(&format!("1{}", " + 1".repeat(n)));
        assert_eq!(parsed(&chain.to_string()), chain);
    }
    let nested = format!("{}1{}", "(".repeat(90), ")".repeat(90));
    assert_eq!(parsed(&nested).to_string(), nested);
    let wide = format!("x[{}1m]", "1m+".repeat(50_000));
    assert!(parse(&wide).is_err());
    assert!(parse(&format!("x[{}1m{}]", "(".repeat(5000), ")".repeat(5000))).is_err());
}

mod random {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = String> {
        prop_oneof!["[a-z_:][a-z0-9_:]{0,6}", Just("sum".into()), Just("by".into()), Just("offset".into())]
            .prop_filter("a keyword with a meaning", |n| {
                !["on", "bool", "ignoring", "inf", "nan", "atan2", "end", "start"].contains(&n.as_str())
            })
    }

    fn selector() -> impl Strategy<Value = String> {
        let matcher = (
            "[a-z]{1,3}",
            prop_oneof![Just("="), Just("!="), Just("=~"), Just("!~")],
            "[a-z.é\"\\\\\n]{0,4}",
        )
            .prop_filter_map("regex", |(n, op, v)| {
                if op.contains('~') && regex::Regex::new(&v).is_err() {
                    None
                } else {
                    Some(format!("{n}{op}{}", crate::labels::quote(&v)))
                }
            });
        (
            name(),
            proptest::collection::vec(matcher, 0..3),
            "",
            prop_oneof![Just(""), Just(" offset 5m"), Just(" @ 12.5"), Just(" @ end() offset -1h")],
        )
            .prop_map(|(n, m, _, w)| {
                if m.is_empty() { format!("{n}{w}") } else { format!("{n}{{{}}}{w}", m.join(", ")) }
            })
    }

    fn query() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            selector(),
            any::<i16>().prop_map(|n| format!("vector({n})")),
            Just("vector(time())".to_string())
        ];
        leaf.prop_recursive(5, 40, 3, |inner| {
            let op = prop_oneof![
                Just("+"),
                Just("-"),
                Just("*"),
                Just("/"),
                Just("%"),
                Just("^"),
                Just("atan2"),
                Just("and"),
                Just("or"),
                Just("unless"),
                Just("== bool"),
                Just("> on (a)"),
                Just("* ignoring (b) group_left (c)"),
                Just("<="),
                Just("+ on () fill (1)")
            ];
            let wrap = prop_oneof![
                Just("("),
                Just("-"),
                Just("abs("),
                Just("sum by (a) ("),
                Just("topk without (b) (3, "),
                Just("count_values(\"v\", ")
            ];
            prop_oneof![
                (inner.clone(), op, inner.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
                (wrap, inner.clone()).prop_map(|(w, e)| if w == "-" {
                    format!("-{e}")
                } else {
                    format!("{w}{e})")
                }),
                inner.prop_map(|e| format!("max_over_time(({e})[5m:1m] offset 1m)")),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn print_and_parse_are_inverse(text in query()) {
            let first = parse(&text);
            prop_assert!(first.is_ok(), "{}: {:?}", text, first.err());
            let first = first.expect("checked");
            let printed = first.to_string();
            let second = parse(&printed);
            prop_assert_eq!(second.as_ref(), Ok(&first), "{} printed {}", text, printed);
            prop_assert_eq!(second.expect("checked").to_string(), printed);
        }

        #[test]
        fn no_text_panics(text in "[a-z0-9(){}\\[\\],:=!~\"'`\\\\+*/%^@<>.# \nµ-]{0,40}") {
            let _ = parse(&text);
            let _ = parse_selector(&text);
        }

        #[test]
        fn no_damaged_query_panics(text in query(), at in any::<prop::sample::Index>(), with in "\\PC{0,2}") {
            let mut chars: Vec<char> = text.chars().collect();
            let i = at.index(chars.len());
            chars.splice(i..=i, with.chars());
            let _ = parse(&chars.into_iter().collect::<String>());
        }
    }
}

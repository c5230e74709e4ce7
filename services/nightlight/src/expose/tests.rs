use super::{
    Format, Item, Kind, ParseError,
    escape::{Scheme, escape},
    labels_of,
    negotiate::{Protocol, accept, format_of, wanted},
    parse, write,
};
use crate::labels::{Labels, NAME};
use proptest::prelude::*;

/// Points, and all else as text.
type Read = (Vec<(String, Option<i64>, f64)>, Vec<String>);

/// A page's points as labels, instants and values, and all else as text.
fn read(format: Format, page: &[u8]) -> Result<Read, String> {
    let (mut points, mut rest) = (Vec::new(), Vec::new());
    parse::<ParseError>(format, page, &mut |item| {
        match item {
            Item::Point(p) => {
                if let Some(e) = &p.exemplar {
                    rest.push(format!("exemplar {} {} {:?}", e.label_set(), e.value, e.at_ms));
                }
                points.push((labels_of(p.series, p.numeric)?.to_string(), p.at_ms, p.value));
            }
            Item::Type(f, k) => rest.push(format!("{f} is {}", k.as_str())),
            Item::Help(f, h) => rest.push(format!("{f} helps {h}")),
            Item::Unit(f, u) => rest.push(format!("{f} in {u}")),
        }
        Ok(())
    })
    .map_err(|e| e.0)?;
    Ok((points, rest))
}

#[test]
fn text_is_read_as_prometheus_reads_it() {
    let page = r#"# HELP go_gc_duration_seconds A summary \\ of\npauses.
# 	TYPE 	go_gc_duration_seconds summary
go_gc_duration_seconds{quantile="0"} 4.9351e-05
go_gc_duration_seconds{quantile="0.25",} 7.424100000000001e-05
go_gc_duration_seconds_count 99
some:aggregate:rate5m{a_b="c"}	1
# TYPE h histogram
h_bucket{le="1"} 5 1395066363000
h_bucket { le="+Inf" , a="x" } 5
# TYPE "my.metric" gauge
{"my.metric", "a.b"="c\"d\\e\nf"} NaN
# HELP
# a comment
windows 1.5 -7
null_byte_metric{a="abc"} +Inf"#;
    let (points, rest) =
        read(Format::Text, page.replace("windows 1.5 -7", "windows 1.5 -7\r").as_bytes()).unwrap();
    let shown: Vec<String> = points.iter().map(|(l, t, v)| format!("{l} {t:?} {v}")).collect();
    assert_eq!(
        shown,
        [
            r#"go_gc_duration_seconds{quantile="0.0"} None 0.000049351"#,
            r#"go_gc_duration_seconds{quantile="0.25"} None 0.00007424100000000001"#,
            r#"go_gc_duration_seconds_count None 99"#,
            r#"some:aggregate:rate5m{a_b="c"} None 1"#,
            r#"h_bucket{le="1.0"} Some(1395066363000) 5"#,
            r#"h_bucket{a="x", le="+Inf"} None 5"#,
            r#"my.metric{"a.b"="c\"d\\e\nf"} None NaN"#,
            r#"windows Some(-7) 1.5"#,
            r#"null_byte_metric{a="abc"} None inf"#,
        ]
    );
    assert_eq!(
        rest,
        [
            "go_gc_duration_seconds helps A summary \\ of\npauses.",
            "go_gc_duration_seconds is summary",
            "h is histogram",
            "my.metric is gauge"
        ]
    );
}

#[test]
fn mistakes_are_named_in_prometheus_words() {
    for (page, words) in [
        ("a", r#"expected value after metric, got "\n" ("INVALID") while parsing: "a\n""#),
        ("a{b='c'} 1\n", r#"expected label value, got "'" ("INVALID") while parsing: "a{b='""#),
        ("a{b=\n", r#"expected label value, got "\n" ("INVALID") while parsing: "a{b=\n""#),
        ("a true\n", r#"strconv.ParseFloat: parsing "true": invalid syntax while parsing: "a true""#),
        (
            "empty_label_name{=\"\"} 0",
            r#"expected label name or left brace, got "=\"" ("EQUAL") while parsing: "empty_label_name{=\"""#,
        ),
        ("foo 1_2\n", r#"unsupported character in float while parsing: "foo 1_2""#),
        ("foo 0x1p-3\n", r#"unsupported character in float while parsing: "foo 0x1p-3""#),
        (
            "foo 0 1_2\n",
            r#"expected next entry after timestamp, got "_" ("INVALID") while parsing: "foo 0 1_""#,
        ),
        (r#"{a="ok"} 1"#, r#"metric name not set while parsing: "{a=\"ok\"}""#),
        ("# TYPE a gouge\n", r#"invalid metric type "gouge""#),
    ] {
        assert_eq!(read(Format::Text, page.as_bytes()).expect_err(page), words);
    }
    for (page, words) in [
        ("", "data does not end with # EOF"),
        ("a 1\n", "data does not end with # EOF"),
        ("# EOF\na 1\n", "unexpected data after # EOF"),
        ("\n\n# EOF\n", r#"expected a valid start token, got "\n" ("INVALID") while parsing: "\n""#),
        (
            "# TYPE a_seconds gauge\n# UNIT a_seconds bytes\n# EOF",
            r#"unit "bytes" not a suffix of metric "a_seconds""#,
        ),
        ("a 1 NaN\n# EOF\n", r#"invalid timestamp NaN while parsing: "a 1 NaN""#),
        (
            "a 1 # {b=\"c\"}\n# EOF\n",
            r#"expected value after exemplar labels, got "\n" ("INVALID") while parsing: "a 1 # {b=\"c\"}\n""#,
        ),
    ] {
        assert_eq!(read(Format::OpenMetrics, page.as_bytes()).expect_err(page), words);
    }
    assert_eq!(read(Format::Text, b"a 1\n\xff 2\n").expect_err("bytes"), "invalid UTF-8 in line 2");
    assert!(labels_of("a{b=\"1\",b=\"2\"}", None).expect_err("twice").0.contains("is not unique"));
}

#[test]
fn open_metrics_has_units_instants_and_exemplars() {
    let page = r#"# TYPE foo_seconds counter
# UNIT foo_seconds seconds
# HELP foo_seconds How \"long\".
foo_seconds_total{a="b"} 17.0 1520879607.789 # {id="counter-test"} 5 1.25
foo_seconds_created{a="b"} 1520872607.123
# TYPE hist histogram
hist_bucket{le="1e3"} 2 # {} 0.5
{"utf.8","ü"="ö"} 1
# EOF
"#;
    let (points, rest) = read(Format::OpenMetrics, page.as_bytes()).unwrap();
    assert_eq!(points[0], (r#"foo_seconds_total{a="b"}"#.into(), Some(1_520_879_607_789), 17.0));
    assert_eq!(points[1], (r#"foo_seconds_created{a="b"}"#.into(), None, 1_520_872_607.123));
    assert_eq!(points[2].0, r#"hist_bucket{le="1000.0"}"#);
    assert_eq!(points[3].0, r#"utf.8{"ü"="ö"}"#);
    assert_eq!(
        rest,
        [
            "foo_seconds is counter",
            "foo_seconds in seconds",
            "foo_seconds helps How \"long\".",
            "exemplar {id=\"counter-test\"} 5 Some(1250)",
            "hist is histogram",
            "exemplar {} 0.5 None"
        ]
    );
}

/// The bytes are put together by hand: the reader's own structs could agree with themselves on anything.
#[test]
fn protobuf_gives_the_same_series_as_text() {
    fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![tag << 3 | 2, bytes.len() as u8];
        out.extend_from_slice(bytes);
        out
    }
    fn double(tag: u8, v: f64) -> Vec<u8> {
        let mut out = vec![tag << 3 | 1];
        out.extend_from_slice(&v.to_le_bytes());
        out
    }
    let pair = [field(1, b"code"), field(2, b"2\"0")].concat();
    let bucket = [vec![8, 3], double(2, 0.5)].concat();
    let histogram = [vec![8, 7], double(2, 1.5), field(3, &bucket)].concat();
    let metric = [field(1, &pair), field(7, &histogram), vec![6 << 3, 5]].concat();
    let family = [field(1, b"lat_seconds"), field(2, b"Help."), vec![3 << 3, 4], field(4, &metric)].concat();
    let page = [vec![family.len() as u8], family].concat();
    let (points, rest) = read(Format::Protobuf, &page).unwrap();
    let text = "# TYPE lat_seconds histogram\n# HELP lat_seconds Help.\nlat_seconds_count{code=\"2\\\"0\"} 7 5\n\
                lat_seconds_sum{code=\"2\\\"0\"} 1.5 5\nlat_seconds_bucket{code=\"2\\\"0\",le=\"0.5\"} 3 5\n\
                lat_seconds_bucket{code=\"2\\\"0\",le=\"+Inf\"} 7 5\n";
    assert_eq!((points, rest), read(Format::Text, text.as_bytes()).unwrap());
    // Cut anywhere, it is an error and no panic; a length beyond the page is not believed.
    for n in 1..page.len() {
        assert!(read(Format::Protobuf, &page[..n]).is_err(), "{n}");
    }
    let mut huge = Vec::new();
    prost::encode_length_delimiter(usize::MAX / 2, &mut huge).unwrap();
    assert!(read(Format::Protobuf, &huge).is_err());
}

#[test]
fn forms_are_negotiated_as_prometheus_3_does() {
    assert_eq!(
        accept(&Protocol::DEFAULT, true),
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
         application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
         text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    );
    let text = Some(Protocol::PrometheusText0_0_4);
    for (content, fallback, want) in [
        (Some("text/plain; version=0.0.4"), None, Some(Format::Text)),
        (Some("application/openmetrics-text; version=1.0.0; charset=utf-8"), None, Some(Format::OpenMetrics)),
        (
            Some(
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
            ),
            None,
            Some(Format::Protobuf),
        ),
        (Some("application/vnd.google.protobuf; encoding=text"), None, None),
        (None, None, None),
        (None, text, Some(Format::Text)),
        (Some("text/html"), None, None),
        (Some("text/html"), text, Some(Format::Text)),
    ] {
        assert_eq!(format_of(content, fallback).ok(), want, "{content:?}");
    }
    assert_eq!(wanted("text/plain;version=0.0.4"), (Format::Text, Scheme::Underscores));
    assert_eq!(wanted(&accept(&Protocol::DEFAULT, true)), (Format::OpenMetrics, Scheme::AllowUtf8));
}

#[test]
fn names_are_escaped_by_the_three_schemes() {
    for (name, underscores, dots, values) in [
        ("no:escaping_required", "no:escaping_required", "no:escaping__required", "no:escaping_required"),
        ("mysystem.prod.x", "mysystem_prod_x", "mysystem_dot_prod_dot_x", "U__mysystem_2e_prod_2e_x"),
        ("label with 😱", "label_with__", "label__with____", "U__label_20_with_20__1f631_"),
        ("0a", "_a", "__a", "U___30_a"),
    ] {
        assert_eq!(escape(name, Scheme::Underscores), underscores);
        assert_eq!(escape(name, Scheme::Dots), dots);
        assert_eq!(escape(name, Scheme::Values), values);
        assert_eq!(escape(name, Scheme::AllowUtf8), name);
    }
}

fn label() -> impl Strategy<Value = (String, String)> {
    ("[a-c\\.ü\"\\\\]{1,3}", "[a-z \\\\\"\n{},=#ö]{1,6}")
}

fn samples() -> impl Strategy<Value = Vec<(Labels, i64, f64)>> {
    let one =
        ("[a-c:\\. ]{1,4}", proptest::collection::vec(label(), 0..4), -9_000_000i64..9_000_000, any::<f64>());
    proptest::collection::vec(one, 0..8).prop_map(|all| {
        let mut all: Vec<_> = all
            .into_iter()
            .map(|(name, labels, at, v)| {
                let pairs = labels.iter().map(|(n, v)| (n.as_str().into(), v.as_str().into()));
                (Labels::new(pairs).with(NAME, &name), at, v)
            })
            .collect();
        all.sort_by(|a: &(Labels, i64, f64), b| a.0.cmp(&b.0));
        all
    })
}

proptest! {
    /// What one writes, the other reads.
    #[test]
    fn pages_come_back(all in samples(), open in any::<bool>()) {
        let format = if open { Format::OpenMetrics } else { Format::Text };
        let page = write::page(format, Scheme::AllowUtf8, &all);
        let (points, _) = read(format, page.as_bytes()).map_err(|e| TestCaseError::fail(format!("{e}: {page}")))?;
        prop_assert_eq!(points.len(), all.len());
        for ((l, t, v), (labels, at, value)) in points.iter().zip(&all) {
            prop_assert_eq!(l, &labels.to_string());
            prop_assert_eq!(t, &Some(*at));
            prop_assert!(v.to_bits() == value.to_bits() || (v.is_nan() && value.is_nan()));
        }
    }

    #[test]
    fn no_page_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), words in "(# (TYPE|HELP|UNIT|EOF)|a|\\{|\\}|\"|\\\\|=|,| |\n|1|\\.|le|# \\{){0,40}") {
        for format in [Format::Text, Format::OpenMetrics, Format::Protobuf] {
            let _ = read(format, &bytes);
            let _ = read(format, words.as_bytes());
        }
    }
}

#[test]
fn kinds_have_prometheus_names() {
    assert_eq!((Kind::GaugeHistogram.as_str(), Kind::default().as_str()), ("gaugehistogram", "unknown"));
}

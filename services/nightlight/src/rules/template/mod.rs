//! Templates in labels and annotations: Go's `text/template` with Prometheus' functions, as far as they are documented.
//!
//! `parse` makes a tree, `run` writes text from it, `functions` are the functions, `value` what flows between them.
//! Considered: the crates gtmpl and gotmpl; see docs/decisions/0008-nightlight.md. Left out: methods and fields of Go's own types beyond [`Data`]'s, `block`, `call`, complex numbers.
//!
//! Pure: queries go through [`Context::query`]. Bounded: depth of the tree, steps, and bytes of the result.

mod functions;
mod parse;
mod run;
mod value;

pub use functions::link;
pub use value::Value;

use crate::{engine::Point, labels::Labels};

/// What stands before every template of an alert.
const DEFINITIONS: &str = "{{$labels := .Labels}}{{$externalLabels := .ExternalLabels}}{{$externalURL := .ExternalURL}}{{$value := .Value}}";
/// Longest result, bytes.
const OUTPUT_MAX: usize = 64 << 10;
/// Most nodes that are walked.
const STEPS_MAX: usize = 100_000;
/// Deepest nesting.
const DEPTH_MAX: usize = 50;

/// Series with values, as a query inside a template sees them.
pub type Found = Vec<(Labels, Point)>;

/// The world as a template sees it.
pub struct Context<'a> {
    /// Evaluates PromQL at the template's instant.
    pub query: &'a dyn Fn(&str) -> Result<Found, String>,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Where people find this NightLight.
    pub external_url: &'a str,
}

/// What a template of an alert is about.
pub struct Data<'a> {
    /// `$labels`
    pub labels: &'a Labels,
    /// `$externalLabels`
    pub external: &'a Labels,
    /// `$value`
    pub value: &'a Point,
}

/// Whether a template of the alert `name` can be read.
pub fn check(name: &str, text: &str) -> Result<(), String> {
    parse::parse(&format!("__alert_{name}"), &format!("{DEFINITIONS}{text}")).map(|_| ())
}

/// The text that a template of the alert `name` makes; an error stands where the text would.
pub fn expand(name: &str, text: &str, data: &Data<'_>, cx: &Context<'_>) -> String {
    // Most have nothing to expand.
    if !text.contains("{{") {
        return text.to_string();
    }
    let (name, text) = (format!("__alert_{name}"), format!("{DEFINITIONS}{text}"));
    let made = parse::parse(&name, &text)
        .map_err(|e| format!("error parsing template {name}: {e}"))
        .and_then(|tree| {
            let dot = Value::alert(data, cx.external_url);
            run::run(&tree, &name, &text, dot, cx)
                .map_err(|e| format!("error executing template {name}: {e}"))
        });
    made.unwrap_or_else(|e| format!("<error expanding template: {e}>"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn made(text: &str) -> String {
        let query = |q: &str| -> Result<Found, String> {
            match q {
                "two" => Ok(vec![
                    (Labels::of(&[("__name__", "m"), ("a", "y")]), Point::Number(11.0)),
                    (Labels::of(&[("__name__", "m"), ("a", "x")]), Point::Number(21.5)),
                ]),
                "none" => Ok(Vec::new()),
                _ => Err("no such query".into()),
            }
        };
        let labels = Labels::of(&[("instance", "web.example.org:9100"), ("n", "3"), ("html", "<a>")]);
        let external = Labels::of(&[("region", "eu")]);
        let value = Point::Number(1_234_567.0);
        let cx = Context { query: &query, at_ms: 1_435_065_584_128, external_url: "http://host/path" };
        expand("A", text, &Data { labels: &labels, external: &external, value: &value }, &cx)
    }

    #[test]
    fn what_prometheus_makes() {
        let mut wrong = Vec::new();
        for (text, want) in [
            ("plain", "plain"),
            ("{{ $value }} {{ .Value }}", "1.234567e+06 1.234567e+06"),
            ("{{ $labels.instance }}|{{ .Labels.none }}|", "web.example.org:9100||"),
            ("{{ $externalLabels.region }} {{ $externalURL }} {{ pathPrefix }}", "eu http://host/path /path"),
            ("a {{- /* gone */ -}} b", "ab"),
            ("a {{- 1 -}}\n b", "a1b"),
            ("{{ humanize $value }} {{ $value | humanize1024 }}", "1.235M 1.177Mi"),
            ("{{ humanize 0.0123 }} {{ humanize 0.0 }} {{ humanize 1 }}", "12.3m 0 1"),
            (
                "{{ humanizeDuration 0.0 }} {{ humanizeDuration 3.7 }} {{ humanizeDuration 75.0 }} {{ humanizeDuration 100000.0 }} {{ humanizeDuration .0003 }}",
                "0s 3.7s 1m 15s 1d 3h 46m 40s 300us",
            ),
            ("{{ humanizeDuration \"-12\" }}", "-12s"),
            ("{{ humanizePercentage 0.12345 }}", "12.35%"),
            ("{{ humanizeTimestamp 1435065584.128 }}", "2015-06-23 13:19:44.128 +0000 UTC"),
            ("{{ 1435065584 | toTime }}", "2015-06-23 13:19:44 +0000 UTC"),
            ("{{ toDuration 3661.5 }} {{ parseDuration \"1h2m10s500ms\" }}", "1h1m1.5s 3730.5"),
            ("{{ now }}", "1.435065584128e+09"),
            (
                "{{ printf \"%.2f %5d|%-5s|%q %v %%\" $value 7 \"x\" \"q\" true }}",
                "1234567.00     7|x    |\"q\" true %",
            ),
            (
                "{{ printf \"%d\" $value }} {{ printf \"%s\" }} {{ printf \"x\" 1 }}",
                "%!d(float64=1.234567e+06) %!s(MISSING) x%!(EXTRA int=1)",
            ),
            ("{{ with query \"two\" }}{{ . | first | value }}{{ end }}", "11"),
            (
                "{{ range query \"two\" | sortByLabel \"a\" }}{{ .Labels.a }}={{ .Value }};{{ end }}",
                "x=21.5;y=11;",
            ),
            ("{{ range $i, $s := query \"two\" }}{{ $i }}{{ label \"a\" $s }}{{ end }}", "0y1x"),
            ("{{ range query \"none\" }}x{{ else }}nothing{{ end }}", "nothing"),
            ("{{ if eq $labels.n \"3\" }}three{{ else if true }}b{{ else }}c{{ end }}", "three"),
            ("{{ if and (gt $value 5.0) (not false) }}y{{ end }}", "y"),
            ("{{ if or false \"\" 0 }}y{{ else }}n{{ end }}", "n"),
            ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
            (
                "{{ define \"t\" }}<{{ .arg0 }}{{ .arg1 }}>{{ end }}{{ template \"t\" (args 1 \"b\") }}",
                "<1b>",
            ),
            ("{{ tmpl \"t\" 7 }}{{ define \"t\" }}[{{ . }}]{{ end }}", "[7]"),
            ("{{ reReplaceAll \"(.*):.*\" \"$1\" $labels.instance }}", "web.example.org"),
            (
                "{{ stripPort $labels.instance }} {{ stripDomain $labels.instance }}",
                "web.example.org web:9100",
            ),
            (
                "{{ match \"^web\" $labels.instance }} {{ title \"ab cd\" }} {{ toUpper \"x\" }} {{ toLower \"Y\" }}",
                "true Ab Cd X y",
            ),
            ("{{ graphLink \"up{a=\\\"b\\\"}\" }}", "/graph?g0.expr=up%7Ba%3D%22b%22%7D&g0.tab=0"),
            ("{{ tableLink \"a b\" }}", "/graph?g0.expr=a+b&g0.tab=1"),
            ("{{ len $labels }} {{ index $labels \"n\" }} {{ print 1 2 \"a\" \"b\" 3 }}", "3 3 1 2ab3"),
            ("{{ range $k, $v := $labels }}{{ $k }};{{ break }}{{ end }}", "html;"),
            ("{{ (query \"two\" | first).Labels.a }}", "y"),
            ("{{ `raw` }}{{ 'a' }}{{ 0x1F }}{{ 1e3 }}{{ nil | print }}", "raw97311000<nil>"),
        ] {
            if made(text) != want {
                wrong.push(format!("{text}: {} is not {want}", made(text)));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn what_is_wrong_stands_in_the_text() {
        for (text, want) in [
            (
                "{{ nothing }}",
                "<error expanding template: error parsing template __alert_A: template: __alert_A:1: function \"nothing\" not defined>",
            ),
            ("{{ $x }}", "template: __alert_A:1: undefined variable \"$x\""),
            ("{{ if true }}x", "template: __alert_A:1: unexpected EOF"),
            ("\n{{ end }}", "template: __alert_A:2: unexpected {{end}}"),
            ("{{ $value ", "template: __alert_A:1: unclosed action"),
            (
                "{{ query \"none\" | first }}",
                "error calling first: first() called on vector with no elements",
            ),
            ("{{ query \"wrong\" }}", "error calling query: no such query"),
            (
                "{{ humanize \"x\" }}",
                "error calling humanize: strconv.ParseFloat: parsing \"x\": invalid syntax",
            ),
            ("{{ .Nothing }}", "can't evaluate field Nothing in type"),
            ("{{ humanize }}", "wrong number of args for humanize: want 1 got 0"),
            ("{{ template \"no\" }}", "template \"no\" not defined"),
            (
                "{{ define \"r\" }}{{ template \"r\" }}{{ end }}{{ template \"r\" }}",
                "exceeded maximum template depth",
            ),
            ("{{ range query \"two\" }}{{ printf \"%65000d\" 1 }}{{ end }}", "more than 65536 bytes"),
            ("{{ lt 1 \"a\" }}", "incompatible types for comparison"),
        ] {
            let got = made(text);
            assert!(got.starts_with("<error expanding template: ") && got.contains(want), "{text}: {got}");
        }
        for verb in ["f", "g", "e", "s", "d", "q"] {
            assert!(made(&format!("{{{{ printf \"%.99999{verb}\" 1.5 }}}}")).len() < 70_000, "{verb}");
        }
        let deep = format!("{}1{}", "{{ if true }}".repeat(60), "{{ end }}".repeat(60));
        assert!(made(&deep).contains("nested"), "{}", made(&deep));
        let parens = format!("{{{{ {}1{} }}}}", "(".repeat(60), ")".repeat(60));
        assert!(made(&parens).contains("nested"), "{}", made(&parens));
        // Foreign bytes at every place end somewhere.
        for cut in 0..40 {
            let text = "{{ if $value }}é{{ printf \"%d\" `x` }}{{ end }}";
            let end = (0..=cut.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            let _ = made(&text[..end]);
            let _ = check("A", &text[end..]);
        }
    }

    #[test]
    fn histograms_are_shown() {
        let h = Arc::new(crate::histogram::Histogram::default());
        let query = |_: &str| -> Result<Found, String> { Ok(Vec::new()) };
        let cx = Context { query: &query, at_ms: 0, external_url: "" };
        let none = Labels::default();
        let value = Point::Histogram(h);
        let got = expand("A", "{{ $value }}", &Data { labels: &none, external: &none, value: &value }, &cx);
        assert_eq!(got, "{count:0, sum:0}");
    }
}

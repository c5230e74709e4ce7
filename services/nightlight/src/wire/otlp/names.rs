//! What OpenTelemetry's names become: Prometheus 3's `UnderscoreEscapingWithSuffixes`, its default.

/// Units by their UCUM code.
fn unit(code: &str) -> &str {
    match code {
        "d" => "days",
        "h" => "hours",
        "min" => "minutes",
        "s" => "seconds",
        "ms" => "milliseconds",
        "us" => "microseconds",
        "ns" => "nanoseconds",
        "By" => "bytes",
        "KiBy" => "kibibytes",
        "MiBy" => "mebibytes",
        "GiBy" => "gibibytes",
        "TiBy" => "tibibytes",
        "KBy" => "kilobytes",
        "MBy" => "megabytes",
        "GBy" => "gigabytes",
        "TBy" => "terabytes",
        "m" => "meters",
        "V" => "volts",
        "A" => "amperes",
        "J" => "joules",
        "W" => "watts",
        "g" => "grams",
        "Cel" => "celsius",
        "Hz" => "hertz",
        "1" => "",
        "%" => "percent",
        other => other,
    }
}

/// Units of time by which others are divided.
fn per(code: &str) -> &str {
    match code {
        "s" => "second",
        "m" => "minute",
        "h" => "hour",
        "d" => "day",
        "w" => "week",
        "mo" => "month",
        "y" => "year",
        other => other,
    }
}

/// What a metric is, as far as its name shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    Counter,
    Gauge,
    Other,
}

fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != ':').filter(|t| !t.is_empty())
}

fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == ':' { c } else { '_' }).collect()
}

/// A metric's name.
pub fn metric(name: &str, code: &str, sort: Sort) -> String {
    let mut all: Vec<String> = tokens(name).map(str::to_string).collect();
    let mut parts = code.splitn(2, '/');
    let (main, divisor) = (parts.next().unwrap_or_default().trim(), parts.next().unwrap_or_default().trim());
    let add = |all: &mut Vec<String>, text: String| {
        let new: Vec<String> =
            tokens(&text).filter(|t| !all.iter().any(|a| a == t)).map(str::to_string).collect();
        all.extend(new);
    };
    if !main.is_empty() && !main.contains(['{', '}']) {
        add(&mut all, unit(main).to_string());
    }
    if !divisor.is_empty() && !divisor.contains(['{', '}']) {
        let word = per(divisor);
        if !all.iter().any(|a| a == word) {
            all.push("per".into());
            add(&mut all, word.to_string());
        }
    }
    let mut last = |word: &str| {
        all.retain(|t| t != word);
        all.push(word.into());
    };
    match sort {
        Sort::Counter => last("total"),
        Sort::Gauge if code == "1" => last("ratio"),
        _ => {}
    }
    let name = ascii(&all.join("_"));
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

/// A label's name.
pub fn label(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    match plain.as_bytes() {
        [b, ..] if b.is_ascii_digit() => format!("key_{plain}"),
        [b'_', b'_', ..] => plain,
        [b'_', ..] => format!("key{plain}"),
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prometheus' own cases (`otlptranslator`).
    #[test]
    fn names_get_units_and_suffixes_once() {
        use Sort::*;
        for (name, code, sort, want) in [
            ("system.filesystem.usage", "By", Gauge, "system_filesystem_usage_bytes"),
            ("system.network.io", "By", Counter, "system_network_io_bytes_total"),
            ("system.filesystem.utilization", "1", Gauge, "system_filesystem_utilization_ratio"),
            (
                "active_directory.ds.replication.network.io",
                "By",
                Counter,
                "active_directory_ds_replication_network_io_bytes_total",
            ),
            ("astro.light.speed_limit", "m/s", Gauge, "astro_light_speed_limit_meters_per_second"),
            ("storage.util_ratio_total", "1", Other, "storage_util_ratio_total"),
            ("go.gc.total.count", "{runs}", Counter, "go_gc_count_total"),
            ("broken.metric.speed", "km/h", Gauge, "broken_metric_speed_km_per_hour"),
            ("hertz", "Hz", Gauge, "hertz"),
            ("2xx.count", "", Other, "_2xx_count"),
            ("http.server.request.duration", "s", Other, "http_server_request_duration_seconds"),
            ("foo_bytes_total", "By", Counter, "foo_bytes_total"),
        ] {
            assert_eq!(metric(name, code, sort), want);
        }
        for (name, want) in
            [("http.method", "http_method"), ("0a", "key_0a"), ("_x", "key_x"), ("__x", "__x")]
        {
            assert_eq!(label(name), want);
        }
    }
}

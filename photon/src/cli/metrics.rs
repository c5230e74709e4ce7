//! `photon metrics`: questions to NightLight, as tables and little charts.

use super::{Format, Global, KeepToken, output};
use http::Method;
use http_body_util::BodyExt;
use nightlight::promql::duration;
use photon_base::{Code, Error, Name, Result};
use photon_client::Client;
use photon_rt::time::wall;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::PathBuf};

/// Largest answer, bytes.
const ANSWER_MAX: usize = 256 << 20;
/// Points of a chart.
const CHART_POINTS: i64 = 40;

/// `photon metrics …`.
#[derive(clap::Subcommand)]
pub enum MetricsCommand {
    /// Evaluate a PromQL expression at one instant.
    ///
    /// Examples:
    ///   photon metrics query up
    ///   photon metrics query 'sum by (listener) (rate(photon_http_requests_total[1m]))'
    #[command(verbatim_doc_comment)]
    Query {
        /// Expression.
        expr: String,
        /// When, as RFC 3339 or seconds since 1970; else now.
        #[arg(long, value_name = "TIME")]
        time: Option<String>,
        #[command(flatten)]
        of: Of,
    },
    /// Evaluate a PromQL expression over a time, with a small chart for each series.
    ///
    /// Example: photon metrics range 'process_resident_memory_bytes' --last 1h
    #[command(verbatim_doc_comment)]
    Range {
        /// Expression.
        expr: String,
        /// How far back, as in 30m or 12h.
        #[arg(long, default_value = "1h", value_parser = length, value_name = "TIME")]
        last: i64,
        /// Between two points; else as the chart needs.
        #[arg(long, value_parser = length, value_name = "TIME")]
        step: Option<i64>,
        #[command(flatten)]
        of: Of,
    },
    /// List the series that a selector means.
    ///
    /// Example: photon metrics series 'up' '{job="chainfire"}'
    #[command(verbatim_doc_comment)]
    Series {
        /// Selectors; none: all series.
        selectors: Vec<String>,
        #[command(flatten)]
        of: Of,
    },
    /// Show what is scraped and how it is.
    ///
    /// Example: photon metrics targets
    #[command(verbatim_doc_comment)]
    Targets {
        #[command(flatten)]
        of: Of,
    },
    /// Show what is recorded and what is watched, and how that went.
    ///
    /// Example: photon metrics rules
    #[command(verbatim_doc_comment)]
    Rules {
        #[command(flatten)]
        of: Of,
    },
    /// Show alerts that are pending or firing.
    ///
    /// Example: photon metrics alerts
    #[command(verbatim_doc_comment)]
    Alerts {
        #[command(flatten)]
        of: Of,
    },
    /// Run tests of rules, in promtool's form. Needs no cloud.
    ///
    /// Example: photon metrics test-rules tests.yml
    #[command(verbatim_doc_comment)]
    TestRules {
        /// Files with tests.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Show what every node uses, and how that went in the last ten minutes.
    ///
    /// Example: photon metrics top
    #[command(verbatim_doc_comment)]
    Top,
}

/// Whose samples.
#[derive(clap::Args)]
pub struct Of {
    /// Samples of this project instead of the cloud's own.
    #[arg(long, value_name = "PROJECT")]
    project: Option<Name>,
}

fn length(text: &str) -> std::result::Result<i64, String> {
    match duration::parse(text)? {
        ms if ms > 0 => Ok(ms),
        _ => Err("must be greater than 0".into()),
    }
}

/// Asks; `data` of the answer, and its remarks on standard error.
async fn ask(client: &Client, path: &str, params: &[(&str, &str)], of: &Of) -> Result<Value> {
    let query: Vec<String> =
        params.iter().map(|(n, v)| format!("{n}={}", nightlight::scrape::target::percent(v))).collect();
    let path = format!("/prometheus/api/v1/{path}?{}", query.join("&"));
    let mut headers = Vec::new();
    if let Some(p) = &of.project {
        headers.push(("x-scope-orgid", p.as_str()));
    }
    let answer = client.send(Method::GET, &path, &headers, &[]).await?;
    let status = answer.status();
    let body = http_body_util::Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(|e| Error::unavailable("the answer broke off").why(e))?.to_bytes();
    let mut v: Value =
        serde_json::from_slice(&body).map_err(|e| Error::internal("the answer is not JSON").why(e))?;
    for remark in ["warnings", "infos"].iter().flat_map(|k| v[k].as_array().cloned().unwrap_or_default()) {
        eprintln!("{}", remark.as_str().unwrap_or_default());
    }
    if v["status"] == "success" {
        return Ok(v["data"].take());
    }
    if let Some(why) = v["error"].as_str() {
        let code = if status.is_server_error() { Code::Unavailable } else { Code::Invalid };
        return Err(Error::new(code, "the query failed").why(why));
    }
    let text = |k: &str| v[k].as_str().unwrap_or_default().to_string();
    let code = serde_json::from_value(v["code"].clone()).unwrap_or(Code::Internal);
    let e = Error::new(code, text("title")).why(text("detail"));
    Err(match v["hint"].as_str() {
        Some(hint) => e.hint(hint),
        None => e,
    })
}

/// `name{a="b"}`
fn series(metric: &Value) -> String {
    let labels = metric.as_object().into_iter().flatten();
    let labels = labels.map(|(n, v)| (n.as_str().into(), v.as_str().unwrap_or_default().into()));
    nightlight::labels::Labels::new(labels).to_string()
}

fn number(v: &Value) -> f64 {
    v.as_str().and_then(|t| t.parse().ok()).unwrap_or(f64::NAN)
}

/// A column of blocks for each value; a gap for none.
fn spark(values: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let real = || values.iter().copied().filter(|v| v.is_finite());
    let (low, high) = (real().fold(f64::INFINITY, f64::min), real().fold(f64::NEG_INFINITY, f64::max));
    let block = |v: f64| match (v - low) / (high - low) {
        _ if !v.is_finite() => ' ',
        // All the same: a line in the middle.
        x if x.is_nan() => BLOCKS[3],
        x => BLOCKS[((x * 7.0).round() as usize).min(7)],
    };
    values.iter().map(|v| block(*v)).collect()
}

/// Short: four digits are enough beside a chart.
fn short(v: f64) -> String {
    let a = v.abs();
    match v {
        v if !v.is_finite() => nightlight::promql::number(v),
        v if a >= 1e12 => format!("{:.2}T", v / 1e12),
        v if a >= 1e9 => format!("{:.2}G", v / 1e9),
        v if a >= 1e6 => format!("{:.2}M", v / 1e6),
        v if a >= 1e4 => format!("{:.1}k", v / 1e3),
        v if v == v.trunc() => format!("{v}"),
        v if a >= 0.01 => format!("{v:.3}"),
        v => format!("{v:.2e}"),
    }
}

/// Every series of a range with its values, one for each instant of the grid.
fn columns(data: &Value, start_ms: i64, step_ms: i64, n: usize) -> Vec<(String, Vec<f64>)> {
    let all = data["result"].as_array().into_iter().flatten();
    all.map(|s| {
        let mut values = vec![f64::NAN; n];
        for point in s["values"].as_array().into_iter().flatten() {
            let at = (point[0].as_f64().unwrap_or(0.0) * 1000.0).round() as i64;
            if let Some(slot) =
                usize::try_from((at - start_ms) / step_ms).ok().and_then(|i| values.get_mut(i))
            {
                *slot = number(&point[1]);
            }
        }
        (series(&s["metric"]), values)
    })
    .collect()
}

fn seconds(ms: i64) -> String {
    format!("{}.{:03}", ms.div_euclid(1000), ms.rem_euclid(1000))
}

async fn over(
    client: &Client,
    expr: &str,
    last_ms: i64,
    step_ms: i64,
    of: &Of,
) -> Result<(Value, i64, usize)> {
    let end = wall().0 as i64; // not rounded: what began a moment ago shows
    let start = end - last_ms / step_ms * step_ms;
    let (from, to, step) = (seconds(start), seconds(end), seconds(step_ms));
    let params = [("query", expr), ("start", from.as_str()), ("end", to.as_str()), ("step", step.as_str())];
    let data = ask(client, "query_range", &params, of).await?;
    Ok((data, start, ((end - start) / step_ms) as usize + 1))
}

/// Runs `photon metrics …`.
pub async fn metrics(global: &Global, command: MetricsCommand) -> Result<()> {
    if let MetricsCommand::TestRules { files } = command {
        return test_rules(global, files).await;
    }
    let client = global.client().await?;
    match command {
        MetricsCommand::TestRules { .. } => {} // above
        MetricsCommand::Rules { of } => rules(global, &ask(&client, "rules", &[], &of).await?),
        MetricsCommand::Alerts { of } => alerts(global, &ask(&client, "alerts", &[], &of).await?),
        MetricsCommand::Query { expr, time, of } => {
            let mut params = vec![("query", expr.as_str())];
            params.extend(time.as_deref().map(|t| ("time", t)));
            query(global, &ask(&client, "query", &params, &of).await?);
        }
        MetricsCommand::Range { expr, last, step, of } => {
            let step = step.unwrap_or((last / CHART_POINTS).max(1000));
            let (data, start, n) = over(&client, &expr, last, step, &of).await?;
            range(global, &data, &columns(&data, start, step, n));
        }
        MetricsCommand::Series { selectors, of } => {
            let all = if selectors.is_empty() { vec!["{__name__!=\"\"}".to_string()] } else { selectors };
            let params: Vec<(&str, &str)> = all.iter().map(|s| ("match[]", s.as_str())).collect();
            let data = ask(&client, "series", &params, &of).await?;
            match global.output {
                Format::Table | Format::Name => {
                    data.as_array().into_iter().flatten().for_each(|s| output::line(&series(s)));
                }
                f => output::value(f, &data),
            }
        }
        MetricsCommand::Targets { of } => {
            targets(global, &ask(&client, "targets", &[("state", "active")], &of).await?);
        }
        MetricsCommand::Top => top(global, &client).await?,
    }
    client.keep_token(global).await;
    Ok(())
}

fn query(global: &Global, data: &Value) {
    if !matches!(global.output, Format::Table | Format::Name) {
        return output::value(global.output, data);
    }
    let result = &data["result"];
    match data["resultType"].as_str() {
        Some("scalar" | "string") => output::line(result[1].as_str().unwrap_or_default()),
        Some("matrix") => {
            for s in result.as_array().into_iter().flatten() {
                output::line(&series(&s["metric"]));
                for p in s["values"].as_array().into_iter().flatten() {
                    output::line(&format!("  {}  {}", p[0], p[1].as_str().unwrap_or_default()));
                }
            }
        }
        _ => {
            let rows = result.as_array().into_iter().flatten();
            let rows: Vec<Vec<String>> = rows
                .map(|s| vec![series(&s["metric"]), s["value"][1].as_str().unwrap_or_default().to_string()])
                .collect();
            if rows.is_empty() {
                return eprintln!("no series");
            }
            output::line(output::aligned(vec!["SERIES".into(), "VALUE".into()], rows).trim_end());
        }
    }
}

fn range(global: &Global, data: &Value, columns: &[(String, Vec<f64>)]) {
    if !matches!(global.output, Format::Table | Format::Name) {
        return output::value(global.output, data);
    }
    if columns.is_empty() {
        return eprintln!("no series");
    }
    let rows = columns.iter().map(|(name, values)| {
        let real = || values.iter().copied().filter(|v| !v.is_nan());
        let ends = [real().fold(f64::INFINITY, f64::min), real().fold(f64::NEG_INFINITY, f64::max)];
        let last = real().next_back().unwrap_or(f64::NAN);
        vec![name.clone(), spark(values), short(ends[0]), short(ends[1]), short(last)]
    });
    let head = ["SERIES", "CHART", "MIN", "MAX", "LAST"].map(String::from).to_vec();
    output::line(output::aligned(head, rows.collect()).trim_end());
}

fn targets(global: &Global, data: &Value) {
    if !matches!(global.output, Format::Table | Format::Name) {
        return output::value(global.output, data);
    }
    let all = data["activeTargets"].as_array().cloned().unwrap_or_default();
    let rows: Vec<Value> = all
        .iter()
        .map(|t| {
            let took = t["lastScrapeDuration"].as_f64().unwrap_or(0.0);
            let took = if t["health"] == "unknown" { String::new() } else { format!("{:.0} ms", took * 1000.0) };
            json!({ "job": t["labels"]["job"], "node": t["labels"]["node"], "instance": t["labels"]["instance"],
                    "health": t["health"], "took": took, "error": t["lastError"] })
        })
        .collect();
    let columns = [
        ("JOB", "/job"),
        ("NODE", "/node"),
        ("INSTANCE", "/instance"),
        ("HEALTH", "/health"),
        ("TOOK", "/took"),
        ("ERROR", "/error"),
    ];
    output::table(&columns, &rows);
}

fn rules(global: &Global, data: &Value) {
    if !matches!(global.output, Format::Table | Format::Name) {
        return output::value(global.output, data);
    }
    let mut rows = Vec::new();
    for g in data["groups"].as_array().into_iter().flatten() {
        for r in g["rules"].as_array().into_iter().flatten() {
            let took = format!("{:.1} ms", r["evaluationTime"].as_f64().unwrap_or(0.0) * 1000.0);
            let state = r["state"].as_str().unwrap_or_default();
            rows.push(json!({ "group": g["name"], "name": r["name"], "type": r["type"], "state": state,
                              "health": r["health"], "took": took, "query": r["query"], "error": r["lastError"] }));
        }
    }
    let columns = [
        ("GROUP", "/group"),
        ("NAME", "/name"),
        ("TYPE", "/type"),
        ("STATE", "/state"),
        ("HEALTH", "/health"),
        ("TOOK", "/took"),
        ("QUERY", "/query"),
        ("ERROR", "/error"),
    ];
    output::table(&columns, &rows);
}

fn alerts(global: &Global, data: &Value) {
    if !matches!(global.output, Format::Table | Format::Name) {
        return output::value(global.output, data);
    }
    let all = data["alerts"].as_array().into_iter().flatten();
    let rows: Vec<Value> = all
        .map(|a| {
            json!({ "alert": series(&a["labels"]), "state": a["state"], "since": a["activeAt"], "value": a["value"] })
        })
        .collect();
    output::table(
        &[("ALERT", "/alert"), ("STATE", "/state"), ("SINCE", "/since"), ("VALUE", "/value")],
        &rows,
    );
}

/// Every file's verdict, as promtool words it.
async fn test_rules(global: &Global, files: Vec<PathBuf>) -> Result<()> {
    let mut verdicts = Vec::new();
    for f in files {
        let path = f.clone();
        let verdict = photon_rt::task::blocking(move || nightlight::rules::unit::run(&path)).await;
        verdicts.push((f, verdict.err().unwrap_or_default()));
    }
    if matches!(global.output, Format::Table | Format::Name) {
        for (f, wrong) in &verdicts {
            output::line(&format!("Unit Testing:  {}", f.display()));
            if wrong.is_empty() {
                output::line("  SUCCESS\n");
            } else {
                output::line(&format!("  FAILED:\n{}\n", wrong.join("\n")));
            }
        }
    } else {
        let all =
            verdicts.iter().map(|(f, wrong)| json!({ "file": f, "ok": wrong.is_empty(), "failures": wrong }));
        output::value(global.output, &all.collect::<Vec<_>>().into());
    }
    match verdicts.iter().filter(|(_, wrong)| !wrong.is_empty()).count() {
        0 => Ok(()),
        n => Err(Error::new(Code::Unsupported, format!("tests of {n} of {} files failed", verdicts.len()))),
    }
}

async fn top(global: &Global, client: &Client) -> Result<()> {
    const LAST_MS: i64 = 600_000;
    const STEP_MS: i64 = 15_000;
    let questions = [
        ("cpu", "sum by (node) (rate(process_cpu_seconds_total[1m]))"),
        ("memory", "sum by (node) (process_resident_memory_bytes{job=\"photon\"})"),
        ("requests", "sum by (node) (rate(photon_http_requests_total[1m]))"),
    ];
    let mut nodes: BTreeMap<String, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    for (name, expr) in questions {
        let (data, start, n) = over(client, expr, LAST_MS, STEP_MS, &Of { project: None }).await?;
        let all = data["result"].as_array().cloned().unwrap_or_default();
        for (s, (_, values)) in all.iter().zip(columns(&data, start, STEP_MS, n)) {
            let node = s["metric"]["node"].as_str().unwrap_or("-").to_string();
            nodes.entry(node).or_default().insert(name, values);
        }
    }
    let last = |v: Option<&Vec<f64>>| {
        v.and_then(|v| v.iter().rev().copied().find(|v| !v.is_nan())).unwrap_or(f64::NAN)
    };
    if !matches!(global.output, Format::Table | Format::Name) {
        let rows: Vec<Value> = nodes
            .iter()
            .map(|(node, m)| {
                let v = |name: &str| Some(last(m.get(name))).filter(|v| v.is_finite());
                json!({ "node": node, "cpuCores": v("cpu"), "memoryBytes": v("memory"), "requestsPerSecond": v("requests") })
            })
            .collect();
        output::value(global.output, &rows.into());
        return Ok(());
    }
    let none = Vec::new();
    let rows = nodes.iter().map(|(node, m)| {
        let mut row = vec![node.clone()];
        for name in ["cpu", "memory", "requests"] {
            let values = m.get(name);
            let v = last(values);
            row.push(if v.is_nan() { "-".into() } else { short(v) });
            row.push(spark(values.unwrap_or(&none)));
        }
        row
    });
    let head = ["NODE", "CPU CORES", "", "MEMORY", "", "REQUESTS/S", ""].map(String::from).to_vec();
    output::line(output::aligned(head, rows.collect()).trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_and_numbers_are_short() {
        assert_eq!(spark(&[0.0, 7.0, f64::NAN, 3.0]), "▁█ ▄");
        assert_eq!(spark(&[5.0, 5.0]), "▄▄");
        let shown: Vec<String> = [0.0, 12.0, 0.5, 1e-9, 12_345.0, 3.2e9, f64::NAN].map(short).to_vec();
        assert_eq!(shown, ["0", "12", "0.500", "1.00e-9", "12.3k", "3.20G", "NaN"]);
    }

    #[test]
    fn points_find_their_place_on_the_grid() {
        let data = json!({ "result": [{ "metric": { "__name__": "a", "b": "c" },
                                        "values": [[10.0, "1"], [30, "3"], [99, "9"]] }] });
        let all = columns(&data, 10_000, 10_000, 3);
        assert_eq!(all[0].0, "a{b=\"c\"}");
        assert!(all[0].1[0] == 1.0 && all[0].1[1].is_nan() && all[0].1[2] == 3.0);
    }
}

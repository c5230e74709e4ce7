//! Tables, JSON, YAML, names.

use serde_json::Value;
use std::io::Write;

/// `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Names only, one a line.
    Name,
}

/// Prints a line; a reader that went away is no error.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a value as JSON or YAML.
pub fn value(format: Format, v: &Value) {
    match format {
        Format::Yaml => line(serde_yaml_ng::to_string(v).unwrap_or_default().trim_end()),
        _ => line(&serde_json::to_string_pretty(v).unwrap_or_default()),
    }
}

fn cell(v: Option<&Value>) -> String {
    let text = match v {
        None | Some(Value::Null) => "-".to_string(),
        Some(Value::String(s)) if s.is_empty() => "-".to_string(),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Array(a)) if a.is_empty() => "-".to_string(),
        Some(Value::Array(a)) => a.iter().map(|v| cell(Some(v))).collect::<Vec<_>>().join(","),
        Some(v) => v.to_string(),
    };
    // What others wrote must not steer the terminal.
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Prints rows under headings; each column is a heading with a JSON pointer.
pub fn table(columns: &[(&str, &str)], items: &[Value]) {
    let rows: Vec<Vec<String>> =
        items.iter().map(|i| columns.iter().map(|(_, p)| cell(i.pointer(p))).collect()).collect();
    print!("{}", aligned(columns.iter().map(|(t, _)| t.to_string()).collect(), rows));
}

/// Rows in columns as wide as their widest cell.
pub fn aligned(head: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let all: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let count = all.iter().map(Vec::len).max().unwrap_or(0);
    let width: Vec<usize> = (0..count)
        .map(|c| all.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in &all {
        let mut text = String::new();
        for (c, s) in row.iter().enumerate() {
            let pad = width[c].saturating_sub(s.chars().count());
            text.push_str(s);
            text.extend(std::iter::repeat_n(' ', pad + 2));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_terminals_are_safe() {
        let t = aligned(
            vec!["NAME".into(), "X".into()],
            vec![vec!["a".into(), "long".into()], vec!["bbbbbb".into(), "y".into()]],
        );
        assert_eq!(t, "NAME    X\na       long\nbbbbbb  y\n");
        assert_eq!(cell(Some(&Value::String("a\x1b[2Jb".into()))), "a [2Jb");
        assert_eq!(cell(None), "-");
    }
}

//! Files of operations for `photon flaredb txn`: one a line, words or JSON strings.

use photon_base::{Error, Result};

/// One line of a file of operations.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Show a key.
    Get(String),
    /// Set it.
    Put(String, String),
    /// Remove it.
    Delete(String),
    /// It must have this value, or not be there.
    Expect(String, Option<String>),
}

/// A word, or a JSON string, at the front; and what follows it.
fn word(text: &str) -> std::result::Result<(String, &str), String> {
    let text = text.trim_start();
    if text.starts_with('"') {
        let mut all = serde_json::Deserializer::from_str(text).into_iter::<String>();
        let word = match all.next() {
            Some(Ok(w)) => w,
            _ => return Err("a JSON string does not end".into()),
        };
        let end = all.byte_offset();
        return Ok((word, &text[end..]));
    }
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    match &text[..end] {
        "" => Err("a word is missing".into()),
        w => Ok((w.to_string(), &text[end..])),
    }
}

fn step(line: &str) -> std::result::Result<Option<Step>, String> {
    if line.trim().is_empty() || line.trim_start().starts_with('#') {
        return Ok(None);
    }
    let (verb, rest) = word(line)?;
    let (key, rest) = word(rest)?;
    let (step, rest) = match verb.as_str() {
        "get" => (Step::Get(key), rest),
        "delete" => (Step::Delete(key), rest),
        "absent" => (Step::Expect(key, None), rest),
        "put" | "expect" => {
            let (value, rest) = word(rest)?;
            (if verb == "put" { Step::Put(key, value) } else { Step::Expect(key, Some(value)) }, rest)
        }
        v => return Err(format!("{v:?} is not get, put, delete, expect or absent")),
    };
    match rest.trim() {
        "" => Ok(Some(step)),
        more => Err(format!("{more:?} is too much; write what has spaces as a JSON string")),
    }
}

/// All of a file; an error names the line.
pub fn steps(text: &str) -> Result<Vec<Step>> {
    let mut out = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let s = step(line).map_err(|e| Error::invalid(format!("file line {}", n + 1), e))?;
        out.extend(s);
    }
    if out.is_empty() {
        return Err(Error::invalid("file", "has no operations").hint("photon flaredb txn --help"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use photon_base::Code;

    #[test]
    fn files_of_operations_are_read_line_by_line() {
        let text = "# move\nexpect a 1\n  put \"a b\" \"x\\ny\"\nget b\n\ndelete c\nabsent d\n";
        let s = |t: &str| t.to_string();
        let all = vec![
            Step::Expect(s("a"), Some(s("1"))),
            Step::Put(s("a b"), s("x\ny")),
            Step::Get(s("b")),
            Step::Delete(s("c")),
            Step::Expect(s("d"), None),
        ];
        assert_eq!(steps(text).expect("fine"), all);
        for (text, why) in [
            ("", "no operations"),
            ("put a", "line 1: a word is missing"),
            ("get a\nmove a b", "line 2: \"move\" is not"),
            ("put a 1 2", "\"2\" is too much"),
            ("put \"a 1", "does not end"),
        ] {
            let e = steps(text).expect_err(text);
            assert!(e.to_string().contains(why) && e.code == Code::Invalid, "{e}");
        }
    }
}

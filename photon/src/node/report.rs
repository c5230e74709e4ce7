//! What `photon up` says while it starts: lines for people, or one JSON event a line.

use photon_rt::time::{Instant, now};
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// What the start tells at its end.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Front door.
    pub endpoint: String,
    /// Where state is.
    pub data_dir: String,
    /// File with the admin's credentials.
    pub credentials: String,
    /// What is missing on this machine, in plain words.
    pub notes: Vec<String>,
}

/// A step of the start.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A component is ready.
    Component {
        /// Which.
        component: &'static str,
        /// Milliseconds it took.
        ms: u64,
    },
    /// A component is not ready yet, and why.
    Waiting {
        /// Which.
        component: &'static str,
        /// What it waits for.
        why: String,
    },
    /// Everything is ready.
    Ready {
        /// Milliseconds since the start.
        ms: u64,
        /// What to know.
        #[serde(flatten)]
        summary: Summary,
    },
}

/// Where events go.
pub struct Reporter {
    json: bool,
    quiet: bool,
}

/// A step under way.
pub struct Step<'r> {
    reporter: &'r Reporter,
    component: &'static str,
    begun: Instant,
}

impl Reporter {
    /// Lines of JSON, or text.
    pub fn new(json: bool) -> Reporter {
        Reporter { json, quiet: false }
    }

    /// A component begins to start.
    pub fn step(&self, component: &'static str) -> Step<'_> {
        if !self.json && !self.quiet && std::io::stdout().is_terminal() {
            print!("  … {component}\r");
            let _ = std::io::stdout().flush(); // a closed terminal is no reason to stop
        }
        Step { reporter: self, component, begun: now() }
    }

    /// Says why a component is not ready yet.
    pub fn note(&self, component: &'static str, why: &str) {
        self.emit(&Event::Waiting { component, why: why.into() });
    }

    /// Says it. Whoever listened may be gone: that is no reason to stop.
    pub fn emit(&self, e: &Event) {
        let mut out = std::io::stdout().lock();
        let text = if self.json { serde_json::to_string(e).unwrap_or_default() } else { human(e) };
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }
}

impl Step<'_> {
    /// It is ready.
    pub fn done(self) {
        let ms = (now() - self.begun).as_millis() as u64;
        self.reporter.emit(&Event::Component { component: self.component, ms });
    }
}

/// An event as text.
pub fn human(e: &Event) -> String {
    match e {
        Event::Component { component, ms } => {
            let about = crate::services::find(component).map_or("", |s| s.about);
            format!("  ✓ {component:<10} {about:<28} {ms:>5} ms")
        }
        Event::Waiting { component, why } => format!("  … {component:<10} {why}"),
        Event::Ready { ms, summary } => {
            let notes: String = summary.notes.iter().map(|n| format!("\n  note         {n}")).collect();
            format!(
                "PhotonCloud is ready after {:.1} s\n\n  API          {}\n  state        {}\n  credentials  {}{notes}\n\n\
                 Next:\n  eval \"$(photon env)\"\n  photon project create demo\n  photon network create lan --project demo --cidr 10.20.0.0/24\n  \
                 photon vm create a --project demo --image tiny --network lan --wait",
                *ms as f64 / 1000.0,
                summary.endpoint,
                summary.data_dir,
                summary.credentials
            )
        }
    }
}

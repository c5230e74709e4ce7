//! What follows from evaluations, minute by minute.

use super::*;
use std::cell::RefCell;

/// Evaluates a group whose expression gives these values by job at these minutes; what it wrote and told.
struct Try {
    group: Group,
    wrote: RefCell<Vec<String>>,
}

impl Try {
    fn new(rule: &str) -> Self {
        let text = format!("groups: [{{name: g, limit: 2, rules: [{{{rule}}}]}}]");
        let d = file::Defaults { interval_ms: 60_000, query_offset_ms: 0 };
        let spec = file::read("f", &text, d).expect("valid").remove(0);
        Try { group: Group::new(Arc::new(spec), true), wrote: RefCell::default() }
    }

    fn at(&mut self, minute: i64, found: &[(&str, f64)]) -> Vec<Told> {
        let found: Found = found
            .iter()
            .map(|(job, v)| (Labels::of(&[(NAME, "m"), ("job", job)]), Point::Number(*v)))
            .collect();
        let wrote = &self.wrote;
        wrote.borrow_mut().clear();
        let w = World {
            query: &|_, _, _| Ok(found.clone()),
            write: &|batch| {
                let text = |v: f64| if crate::engine::is_stale(v) { "stale".into() } else { v.to_string() };
                let line = |e: &Entry| format!("{} {}", e.labels, text(e.samples[0].1));
                wrote.borrow_mut().extend(batch.iter().map(line));
                Ok(())
            },
            clock: &|| 0.0,
            external: &Labels::default(),
            external_url: "",
            resend_ms: 60_000,
        };
        self.group.evaluate(minute * 60_000, &w)
    }

    fn states(&self) -> Vec<&'static str> {
        self.group.rules[0].alerts.values().map(|a| a.state.as_str()).collect()
    }
}

#[test]
fn recorded_series_end_and_limits_hold() {
    let mut t = Try::new("record: r, expr: m, labels: {x: y}");
    t.at(0, &[("a", 1.0), ("b", 2.0)]);
    assert_eq!(*t.wrote.borrow(), [r#"r{job="a", x="y"} 1"#, r#"r{job="b", x="y"} 2"#]);
    t.at(1, &[("b", 3.0)]);
    assert_eq!(*t.wrote.borrow(), [r#"r{job="a", x="y"} stale"#, r#"r{job="b", x="y"} 3"#]);
    t.at(2, &[("a", 1.0), ("b", 1.0), ("c", 1.0)]);
    assert_eq!(t.group.rules[0].health, Health::Bad("exceeded limit of 2 with 3 series".into()));
    assert!(t.wrote.borrow().is_empty());
    let same =
        Health::Bad("vector contains metrics with the same labelset after applying rule labels".into());
    t.at(3, &[("a", 1.0), ("a", 2.0)]);
    assert_eq!((&t.group.rules[0].health, t.group.failures, t.group.evaluations), (&same, 2, 4));
}

#[test]
fn an_alert_waits_fires_is_kept_and_ends() {
    let mut t = Try::new("alert: A, expr: m, for: 2m, keep_firing_for: 2m, annotations: {v: '{{ $value }}'}");
    assert!(t.at(0, &[("a", 1.0)]).is_empty());
    assert_eq!(t.states(), ["pending"]);
    let line = r#"ALERTS{alertname="A", alertstate="pending", job="a"} 1"#;
    assert_eq!(*t.wrote.borrow(), [line, r#"ALERTS_FOR_STATE{alertname="A", job="a"} 0"#]);
    // It is not so for a moment: it waits anew.
    t.at(1, &[]);
    assert!(t.states().is_empty());
    (2..4).for_each(|m| assert!(t.at(m, &[("a", 1.0)]).is_empty()));
    let told = t.at(4, &[("a", 7.0)]);
    assert_eq!(
        (told.len(), told[0].alert.fired_ms, told[0].alert.annotations.get("v")),
        (1, Some(240_000), "7")
    );
    assert_eq!(told[0].alert.valid_ms, 240_000 + 4 * 60_000);
    assert!(t.wrote.borrow().contains(&line.replace("} 1", "} stale")));
    // Told again only when more than the delay has passed.
    assert_eq!((t.at(5, &[("a", 7.0)]).len(), t.at(6, &[("a", 7.0)]).len()), (0, 1));
    t.at(7, &[]);
    assert_eq!(
        (t.states(), t.group.rules[0].alerts.values().next().and_then(|a| a.kept_ms)),
        (vec!["firing"], Some(420_000))
    );
    t.at(8, &[]);
    let told = t.at(9, &[]);
    assert_eq!((t.states(), told.len(), told[0].alert.resolved_ms), (vec!["inactive"], 1, Some(540_000)));
    assert_eq!(t.group.rules[0].active().count(), 0);
    // It is remembered for a while, so that its end is told again, and then forgotten.
    t.at(24, &[]);
    assert_eq!(t.states(), ["inactive"]);
    t.at(25, &[]);
    assert!(t.states().is_empty());
}

#[test]
fn alerts_go_on_after_a_restart() {
    let rule = "alert: A, expr: m, for: 30m";
    let own = Labels::of(&[(NAME, FOR_STATE), ("alertname", "A"), ("job", "a")]);
    // Active since minute 100; down at `down`, back at `now`: active since when?
    for (down, now, since) in [(110, 115, 105), (125, 130, 110), (140, 150, 100)] {
        let mut t = Try::new(rule);
        t.group.rules[0].restored = false;
        t.at(now, &[("a", 1.0), ("b", 1.0)]);
        assert!(t.wrote.borrow().is_empty(), "not written before it is restored");
        let known = vec![(own.clone(), down * 60_000, 6000.0)];
        t.group.restore(now * 60_000, &|_| Ok(known.clone()));
        let all: Vec<i64> = t.group.rules[0].alerts.values().map(|a| a.active_ms / 60_000).collect();
        assert_eq!(all, [since, now], "{down} {now}");
    }
    let mut t = Try::new(rule);
    t.at(115, &[("a", 1.0)]);
    let ended = vec![(own, 110 * 60_000, f64::from_bits(STALE_BITS))];
    t.group.restore(115 * 60_000, &|_| Ok(ended.clone()));
    assert_eq!(t.group.rules[0].alerts.values().next().map(|a| a.active_ms), Some(115 * 60_000));
}

#[test]
fn a_changed_group_keeps_its_alerts() {
    let mut old = Try::new("alert: A, expr: m, for: 2m");
    old.at(0, &[("a", 1.0)]);
    let mut new = Try::new("alert: A, expr: m + 0, for: 1m");
    new.group.take_over(old.group);
    assert_eq!(new.at(1, &[("a", 1.0)]).len(), 1);
    let mut other = Try::new("record: r, expr: m");
    other.group.take_over(new.group);
    other.at(2, &[]);
    assert_eq!(other.wrote.borrow().iter().filter(|l| l.ends_with("stale")).count(), 2);
}

#[test]
fn slots_are_even() {
    let t = Try::new("record: r, expr: m");
    let spec = &t.group.spec;
    for now in [0, 1_700_000_000_123_456_789] {
        let slot = Group::slot_ns(spec, now);
        assert!(slot <= now && now - slot < 60_000_000_000);
        assert_eq!(slot.rem_euclid(60_000_000_000) as u64, Group::offset_ns(spec));
    }
}

//! What dig sees.

use crate::support::{VIEW, dns, zone};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn dig_sees_names_addresses_and_what_is_not_there() {
    let d = dns(vec![], false).await;
    assert_eq!(d.short("a.demo.photon.internal").await, "10.20.0.5");
    assert_eq!(d.short("A.Demo.PHOTON.internal AAAA +tcp").await, "fd00::5");
    assert_eq!(d.short("-x 10.20.0.5").await, "a.demo.photon.internal.");
    assert_eq!(d.short("-x fd00::5 +tcp").await, "a.demo.photon.internal.");
    assert_eq!(d.short("health.local").await, "127.0.0.1");
    assert_eq!(d.short("photon.internal NS").await, "ns.photon.internal.");
    let soa = d.dig("photon.internal SOA").await;
    assert!(soa.contains("ns.photon.internal. hostmaster.photon.internal. 1 3600 600 86400 5"), "{soa}");
    let soa_of = |text: &str| text.contains("AUTHORITY: 1") && text.contains("SOA\tns.photon.internal.");
    let none = d.dig("nobody.demo.photon.internal").await;
    assert!(
        none.contains("status: NXDOMAIN") && none.contains("flags: qr aa rd;") && soa_of(&none),
        "{none}"
    );
    let none = d.dig("-x 10.20.0.99").await;
    assert!(none.contains("status: NXDOMAIN") && none.contains("0.20.10.in-addr.arpa."), "{none}");
    let empty = d.dig("a.demo.photon.internal TXT").await;
    assert!(empty.contains("status: NOERROR") && empty.contains("ANSWER: 0") && soa_of(&empty), "{empty}");
    let refused = d.dig("example.org").await;
    assert!(refused.contains("status: REFUSED") && !refused.contains(" ra"), "{refused}");
    let any = d.dig("a.demo.photon.internal ANY +notcp").await;
    assert!(any.contains("HINFO\t\"RFC8482\""), "{any}");
    // EDNS in, EDNS out; none in, none out; an unknown version is told.
    let edns = d.dig("a.demo.photon.internal +edns=0 +dnssec").await;
    assert!(edns.contains("version: 0, flags: do; udp: 1232"), "{edns}");
    assert!(!d.dig("a.demo.photon.internal +noedns").await.contains("OPT PSEUDOSECTION"));
    assert!(d.dig("a.demo.photon.internal +edns=1 +noednsneg").await.contains("status: BADVERS"));
    assert!(d.dig("photon.internal AXFR").await.contains("Transfer failed"));
    assert!(d.dig("version.bind TXT CH").await.contains("status: REFUSED"));
    assert!(!d.dig("a.demo.photon.internal +norecurse").await.contains("WARNING"), "well formed");
    d.tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_come_back_over_tcp_and_many_queries_share_a_connection() {
    let d = dns(vec![], false).await;
    let cut = d.dig("many.demo.photon.internal +noedns +ignore").await;
    assert!(cut.contains("flags: qr aa tc rd;"), "{cut}");
    assert_eq!(
        d.short("many.demo.photon.internal +noedns").await.lines().count(),
        60,
        "dig comes back over TCP"
    );
    assert_eq!(d.short("many.demo.photon.internal +edns=0 +bufsize=4096 +ignore").await.lines().count(), 60);
    let four = d
        .dig("+short +tcp +keepopen a.demo.photon.internal a.demo.photon.internal AAAA health.local A")
        .await;
    assert_eq!(four.lines().collect::<Vec<_>>(), ["10.20.0.5", "fd00::5", "127.0.0.1"]);
    d.tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_zone_is_answered_at_once_and_a_removed_view_is_silent() {
    let d = dns(vec![], false).await;
    let mut z = zone(2);
    z.insert("new.demo.photon.internal", [10, 20, 0, 9].into()).expect("new");
    d.server.set_zone(VIEW, Arc::new(z), false);
    assert_eq!(d.short("new.demo.photon.internal").await, "10.20.0.9");
    d.server.remove_view(VIEW);
    d.server.remove_view(VIEW);
    assert!(d.server.list().is_empty());
    let again = crate::support::query("a.demo.photon.internal", 1, 1);
    assert_eq!(d.datagram(&again).await, None);
    d.tasks.shutdown().await;
}

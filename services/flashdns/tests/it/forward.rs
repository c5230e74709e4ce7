//! Names that are not ours, and resolvers that do not behave.

use crate::support::{dns, pair, query};
use photon_rt::{task::Tasks, time::now};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
};

/// An answer to `q` with one address.
fn answered(q: &[u8], last: u8) -> Vec<u8> {
    let end = 12 + q[12..].iter().position(|b| *b == 0).expect("a name") + 5;
    let mut p = q[..end].to_vec();
    p[2] |= 0x84; // also claims authority, which we must not repeat
    p[3] |= 0x80;
    p[7] = 1;
    p[11] = 0;
    p.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, last]);
    p
}

/// A resolver: `script` makes the packets that it sends for a query over UDP.
async fn resolver(tasks: &Tasks, script: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let (udp, tcp, address) = pair().await;
    tasks.spawn("resolver-udp", async move {
        let mut b = [0; 4096];
        while let Ok((n, peer)) = udp.recv_from(&mut b).await {
            for p in script(&b[..n]) {
                let _ = udp.send_to(&p, peer).await;
            }
        }
    });
    tasks.spawn("resolver-tcp", async move {
        while let Ok((mut s, _)) = tcp.accept().await {
            let Ok(len) = s.read_u16().await else { continue };
            let mut q = vec![0; usize::from(len)];
            if s.read_exact(&mut q).await.is_ok() {
                let a = answered(&q, 99);
                let _ = s.write_all(&[&(a.len() as u16).to_be_bytes()[..], &a].concat()).await;
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_answer_to_the_question_is_believed() {
    let tasks = Tasks::new();
    let liar = resolver(&tasks, |q| {
        let mut wrong_id = answered(q, 66);
        wrong_id[0] ^= 1;
        let mut other_name = answered(q, 66);
        other_name[13] ^= 1;
        let mut no_answer = answered(q, 66);
        no_answer[2] &= 0x7f;
        vec![wrong_id, other_name, no_answer, vec![], q[..5].to_vec(), answered(q, 1), answered(q, 66)]
    })
    .await;
    let d = dns(vec![liar], true).await;
    assert_eq!(d.short("www.Example.org").await, "192.0.2.1");
    let whole = d.dig("www.example.org").await;
    assert!(whole.contains("flags: qr rd ra;"), "not authoritative: {whole}");
    assert_eq!(d.short("www.example.org +tcp").await, "192.0.2.1");
    // Our own names are not asked elsewhere, and neither is what the client wants no recursion for.
    assert!(d.dig("nobody.photon.internal").await.contains("NXDOMAIN"));
    assert!(d.dig("www.example.org +norecurse").await.contains("REFUSED"));
    d.tasks.shutdown().await;
    tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_becomes_servfail_the_next_resolver_helps_and_floods_are_bounded() {
    let tasks = Tasks::new();
    #[expect(clippy::disallowed_methods, reason = "a resolver that never answers")]
    let deaf = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
    let deaf_at = deaf.local_addr().expect("address");
    let good = resolver(&tasks, |q| vec![answered(q, 2)]).await;
    let d = dns(vec![deaf_at], true).await;
    let t = now();
    assert!(d.dig("www.example.org").await.contains("SERVFAIL"));
    println!("SERVFAIL after {:?}", t.elapsed());
    // 2,000 queries at once: at most 128 sockets are under way, the others fail at once.
    #[expect(clippy::disallowed_methods, reason = "a plain client")]
    let s = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
    for i in 0..2000 {
        s.send_to(&query(&format!("n{i}.example.org"), 1, i), d.address).await.expect("sent");
    }
    assert_eq!(d.short("a.demo.photon.internal").await, "10.20.0.5", "our own names meanwhile");
    let (mut b, mut early) = ([0; 512], 0);
    let t = now();
    while t.elapsed().as_millis() < 1000 {
        if s.try_recv(&mut b).is_ok() {
            early += 1;
            assert_eq!(b[3] & 0xf, 2);
        } else {
            tokio::task::yield_now().await;
        }
    }
    assert!(early > 0, "those above the bound were told at once");
    d.tasks.shutdown().await;
    let d = dns(vec![deaf_at, good], true).await;
    assert_eq!(d.short("www.example.org").await, "192.0.2.2");
    d.tasks.shutdown().await;
    tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_cut_is_fetched_over_tcp_for_clients_that_came_over_tcp() {
    let tasks = Tasks::new();
    let cutter = resolver(&tasks, |q| {
        let mut p = answered(q, 1);
        p[2] |= 2;
        vec![p]
    })
    .await;
    let d = dns(vec![cutter], true).await;
    assert_eq!(d.short("www.example.org +tcp").await, "192.0.2.99");
    assert!(d.dig("www.example.org +ignore").await.contains(" tc "));
    assert_eq!(d.short("www.example.org").await, "192.0.2.99", "dig comes back over TCP");
    d.tasks.shutdown().await;
    tasks.shutdown().await;
}

//! Clients that mean no good.

use crate::support::{dns, query};
use photon_rt::{
    entropy::Rng,
    time::{Duration, timeout},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_harms_nobody() {
    let d = dns(vec![], false).await;
    #[expect(clippy::disallowed_methods, reason = "a plain client")]
    let s = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
    let mut rng = Rng::new(1);
    for i in 0..2000 {
        let mut p: Vec<u8> = (0..rng.below(600)).map(|_| rng.next_u64() as u8).collect();
        if i % 2 == 0 {
            p = query("a.demo.photon.internal", 1, 7);
            let at = rng.below(p.len() as u64) as usize;
            p[at] = rng.next_u64() as u8;
        }
        s.send_to(&p, d.address).await.expect("sent");
    }
    assert_eq!(d.short("a.demo.photon.internal").await, "10.20.0.5");

    // Over TCP: a length without bytes, a query too long, an answer instead of a query.
    let mut half = TcpStream::connect(d.address).await.expect("connect");
    half.write_all(&[0, 40, 1]).await.expect("sent");
    for bad in [&[0xff, 0xff][..], &[0, 2, 1, 2], &[&[0, 12][..], &[0, 1, 0x80], &[0; 9]].concat()] {
        let mut c = TcpStream::connect(d.address).await.expect("connect");
        c.write_all(bad).await.expect("sent");
        let mut b = Vec::new();
        let end = timeout(Duration::from_secs(5), "the end", c.read_to_end(&mut b)).await.expect("closed");
        assert!(end.is_err() || b.is_empty(), "{b:?}");
    }
    assert_eq!(d.short("a.demo.photon.internal +tcp").await, "10.20.0.5");
    d.tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_queries_are_all_answered_and_connections_are_bounded() {
    let d = dns(vec![], false).await;
    let mut c = TcpStream::connect(d.address).await.expect("connect");
    let mut all = Vec::new();
    for id in 0..500u16 {
        let q = query("many.demo.photon.internal", 1, id);
        all.extend_from_slice(&(q.len() as u16).to_be_bytes());
        all.extend_from_slice(&q);
    }
    let (mut from, mut to) = c.split();
    let send = async {
        // Byte by byte at the start: frames are not segments.
        for b in &all[..100] {
            to.write_all(std::slice::from_ref(b)).await.expect("sent");
        }
        to.write_all(&all[100..]).await.expect("sent");
        to.shutdown().await.expect("half closed");
    };
    let read = async {
        let mut ids = Vec::new();
        while let Ok(len) = from.read_u16().await {
            let mut p = vec![0; usize::from(len)];
            from.read_exact(&mut p).await.expect("whole");
            ids.push(u16::from_be_bytes([p[0], p[1]]));
        }
        ids
    };
    let ((), ids) = timeout(Duration::from_secs(20), "the answers", async { tokio::join!(send, read) })
        .await
        .expect("in time");
    assert_eq!(ids, (0..500).collect::<Vec<_>>());

    // Idle connections up to the bound are kept; one more is closed at once; UDP goes on.
    let mut idle = Vec::new();
    for _ in 0..128 {
        idle.push(TcpStream::connect(d.address).await.expect("connect"));
    }
    let mut extra = TcpStream::connect(d.address).await.expect("connect");
    let end = timeout(Duration::from_secs(5), "the refusal", extra.read(&mut [0])).await.expect("closed");
    assert!(matches!(end, Ok(0) | Err(_)));
    assert_eq!(d.short("a.demo.photon.internal").await, "10.20.0.5");
    drop(idle);
    let fresh = async {
        loop {
            let mut c = TcpStream::connect(d.address).await.expect("connect");
            let q = query("a.demo.photon.internal", 1, 5);
            let _ = c.write_all(&[&(q.len() as u16).to_be_bytes()[..], &q].concat()).await;
            if c.read_u16().await.is_ok() {
                return;
            }
        }
    };
    timeout(Duration::from_secs(20), "room again", fresh).await.expect("in time");
    d.tasks.shutdown().await;
}

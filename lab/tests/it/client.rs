//! Our own client over connections that break: changes happen once, watches see everything once, and a front door that
//! is dead costs a moment.

use http::Method;
use photon_client::{Change, Client, Credentials, Profile};
use photon_lab::{cloud::Cloud, proxy::Proxy};
use photon_rt::time::{Duration, now, sleep, timeout};
use serde_json::{Value, json};

/// Follows the projects until one called `last` is there.
async fn follow(client: &Client, from: u64, last: &str) -> Vec<(String, String)> {
    let mut watch = client.watch("/v1/projects", from);
    let mut all = Vec::new();
    loop {
        let change = timeout(Duration::from_secs(60), "a change", watch.next()).await.expect("in time");
        let (name, what) = match change.expect("the watch goes on") {
            Change::Put(o) => {
                let name = o["meta"]["name"].as_str().expect("a name").to_string();
                (name, format!("{} at {}", o["meta"]["uid"], o["meta"]["revision"]))
            }
            Change::Delete { name, .. } => (name, "gone".into()),
        };
        let end = name == last;
        all.push((name, what));
        if end {
            return all;
        }
    }
}

fn project(name: &str) -> Value {
    json!({ "meta": { "name": name }, "spec": {} })
}

#[tokio::test(flavor = "multi_thread")]
async fn client_survives_doors_that_fail() {
    let cloud = Cloud::new("user");
    tokio::task::block_in_place(|| cloud.up());
    let profile = Profile::load(&cloud.dir.path().join("creds/admin.json")).expect("profile");
    let client = |urls: &str| {
        let (user, password) = (profile.user.clone(), profile.password.clone());
        Client::new(urls, &profile.ca, Credentials::Password { user, password }).expect("client")
    };
    let (a, b) = (Proxy::before(&profile.endpoint, 1).await, Proxy::before(&profile.endpoint, 2).await);
    let clean = client(&profile.endpoint);
    let doors = client(&format!("{},{}", a.url, b.url));
    let from = clean.get("/v1/projects").await.expect("list")["revision"].as_u64().expect("a revision");
    doors.get("/v1/projects").await.expect("logs in");
    [&a, &b].iter().for_each(|p| p.lose(60));

    let write = async {
        let (mut made, mut n) = (0, 0);
        while a.cuts() + b.cuts() < 60 && n < 2_000 {
            let name = format!("p{n}");
            n += 1;
            match doors.call(Method::POST, "/v1/projects", Some(&project(&name))).await {
                Ok(_) => made += 1,
                // Sent again under the same key, a request that was done is answered as it was then.
                Err(e) => assert!(e.is_retryable(), "{name}: {e}"),
            }
            if n % 3 == 0 {
                let path = format!("/v1/projects/{name}");
                if let Err(e) = doors.call(Method::DELETE, &path, None).await {
                    assert!(e.is_retryable() || e.code == photon_base::Code::NotFound, "{name}: {e}");
                }
            }
        }
        [&a, &b].iter().for_each(|p| p.lose(0));
        clean.call(Method::POST, "/v1/projects", Some(&project("last"))).await.expect("the last");
        (made, n)
    };
    let ((made, asked), seen, truth) =
        tokio::join!(write, follow(&doors, from, "last"), follow(&clean, from, "last"));
    assert_eq!(seen.len(), truth.len(), "a gap or a duplicate");
    assert!(seen == truth, "another history");
    assert!(made * 10 > asked * 9, "{made} of {asked} were acknowledged");
    assert!(a.cuts() + b.cuts() >= 60);

    // A dead door, then the other.
    a.lose(1000);
    let begun = now();
    for _ in 0..3 {
        doors.get("/v1/projects").await.expect("the other door");
    }
    a.lose(0);
    b.lose(1000);
    doors.get("/v1/projects").await.expect("the first again");
    assert!(now() - begun < Duration::from_secs(30));
    // Nobody at all: an error that says so.
    a.lose(1000);
    let e = doors.get("/v1/projects").await.expect_err("nobody is there");
    assert!(e.is_retryable(), "{e}");
    a.lose(0);
    b.lose(0);
    let back = async {
        while doors.get("/v1/projects").await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), "both doors", back).await.expect("in time");
    tokio::task::block_in_place(|| drop(cloud));
}

use super::*;
use crate::Member;
use async_trait::async_trait;
use photon_auth::{Authority, Decision, Identity, Policy, Proof};
use photon_kv::MemKv;
use std::sync::Mutex;

/// Members that are what they are told to be.
#[derive(Default)]
pub(crate) struct Told(pub Mutex<Vec<Member>>);

impl Told {
    pub fn with(all: &[(u64, &str, bool)]) -> Told {
        let member = |(id, name, votes): &(u64, &str, bool)| Member {
            id: *id,
            name: name.to_string(),
            peer_url: format!("https://10.0.0.{id}:2380"),
            votes: *votes,
            leads: *id == 1,
            behind: Some(0),
        };
        Told(Mutex::new(all.iter().map(member).collect()))
    }
}

#[async_trait]
impl Members for Told {
    fn all(&self) -> Vec<Member> {
        self.0.lock().expect("lock").clone()
    }
    fn cluster(&self) -> u64 {
        77
    }
    fn me(&self) -> u64 {
        1
    }
    async fn admit(&self, id: u64, name: &Name, peer_url: &str, votes: bool) -> Result<()> {
        let mut all = self.0.lock().expect("lock");
        if all.iter().all(|m| m.id != id) {
            let (name, peer_url) = (name.to_string(), peer_url.to_string());
            all.push(Member { id, name, peer_url, votes, leads: false, behind: Some(9) });
        }
        Ok(())
    }
    async fn enfranchise(&self, id: u64) -> Result<()> {
        self.0.lock().expect("lock").iter_mut().filter(|m| m.id == id).for_each(|m| m.votes = true);
        Ok(())
    }
    async fn dismiss(&self, id: u64) -> Result<bool> {
        self.0.lock().expect("lock").retain(|m| m.id != id);
        Ok(true)
    }
    fn hand_over(&self) -> bool {
        false
    }
}

struct OnlyAdmin;

#[async_trait]
impl Policy for OnlyAdmin {
    async fn decide(&self, caller: &Caller, action: Action, _: &Target) -> Decision {
        let because = "test".to_string();
        match (caller.identity.name.as_str(), action.kind, action.verb) {
            ("admin", "node", Verb::Create) => Decision::Allow { because },
            _ => Decision::Deny { because },
        }
    }
}

struct World {
    enrol: Arc<Enrol>,
    store: Store,
    members: Arc<Told>,
}

fn world() -> World {
    let store = Store::new(Arc::new(MemKv::new()), Arc::new(photon_api::registry()));
    let dir = std::env::temp_dir().join(format!("photon-enrol-{:x}", photon_rt::entropy::u64()));
    let authority = Authority::open(&dir, "c", wall()).expect("authority").root();
    photon_rt::fs::remove_dir_all(&dir).expect("clean");
    let members = Arc::new(Told::with(&[(1, "a", true)]));
    let keys = Keys { cluster: photon_rt::entropy::uid(), authority, tokens: vec![1, 2, 3] };
    let gate = Gate::new(Arc::new(OnlyAdmin));
    let enrol = Enrol::new(store.clone(), gate, members.clone(), keys, "1.2.3").expect("enrol");
    World { enrol, store, members }
}

impl World {
    async fn token(&self, ttl: u64) -> JoinToken {
        let caller = caller("admin");
        let body = format!(r#"{{"ttlSeconds":{ttl}}}"#);
        let answer = self.enrol.make_token(Some(caller), body.as_bytes()).await.expect("token");
        JoinToken::parse(&answer.token).expect("its own")
    }
}

fn caller(name: &str) -> Caller {
    Caller { identity: Identity::user(name.parse().expect("name")), proof: Proof::Certificate }
}

fn request(t: &JoinToken, name: &str, nonce: &str) -> JoinRequest {
    JoinRequest {
        secret: t.secret(),
        nonce: format!("{nonce}-0123456789abcdef"),
        name: name.parse().expect("name"),
        endpoint: "https://10.0.0.2:8443".into(),
        peer_url: "https://10.0.0.2:2380".into(),
        gossip: "10.0.0.2:2381".into(),
        version: "1.2.9".into(),
    }
}

async fn ask(w: &World, r: &JoinRequest) -> Result<Admission> {
    w.enrol.join(&serde_json::to_vec(r).expect("json")).await
}

#[tokio::test]
async fn a_token_lets_one_machine_in_however_often_it_asks() {
    let w = world();
    let t = w.token(60).await;
    let first = ask(&w, &request(&t, "b", "x")).await.expect("let in");
    assert_eq!((first.store, first.mates.len(), first.mates[0].name.as_str()), (77, 1, "a"));
    assert!(first.authority_key.contains("PRIVATE KEY"));
    let again = ask(&w, &request(&t, "b", "x")).await.expect("the answer was lost");
    assert_eq!((again.member, w.members.all().len()), (first.member, 2));
    for (name, nonce) in [("b", "y"), ("c", "x"), ("c", "y")] {
        let e = ask(&w, &request(&t, name, nonce)).await.expect_err("another machine");
        assert_eq!(e.code, Code::Denied, "{name} {nonce}");
    }
    let node = w.store.get::<NodeSpec>(None, &"b".parse().expect("name")).await.expect("read").expect("node");
    assert_eq!(node.status.number(), Some(first.member));
    assert_eq!(node.status.peer_url, "https://10.0.0.2:2380");
    // A name that is taken costs the token nothing.
    let t = w.token(60).await;
    let e = ask(&w, &request(&t, "b", "z")).await.expect_err("taken");
    assert_eq!(e.code, Code::Exists);
    assert!(ask(&w, &request(&t, "c", "z")).await.is_ok());
}

#[tokio::test]
async fn who_may_not_come_in_changes_nothing() {
    let w = world();
    let t = w.token(60).await;
    let good = request(&t, "b", "x");
    let stranger = JoinToken::new([0; 32], [5; 16]);
    let wrong = [
        (JoinRequest { secret: stranger.secret(), ..good.clone() }, Code::Denied),
        (JoinRequest { secret: "x".repeat(300), ..good.clone() }, Code::Denied),
        (JoinRequest { version: "1.3.0".into(), ..good.clone() }, Code::Unsupported),
        (JoinRequest { version: "".into(), ..good.clone() }, Code::Unsupported),
        (JoinRequest { peer_url: "http://10.0.0.2:2380".into(), ..good.clone() }, Code::Invalid),
        (JoinRequest { peer_url: "https://0.0.0.0:2380".into(), ..good.clone() }, Code::Invalid),
        (JoinRequest { endpoint: "https://evil.example:8443".into(), ..good.clone() }, Code::Invalid),
        (JoinRequest { gossip: "".into(), ..good.clone() }, Code::Invalid),
        (JoinRequest { nonce: "short".into(), ..good.clone() }, Code::Invalid),
    ];
    for (r, code) in wrong {
        let e = ask(&w, &r).await.expect_err("refused");
        assert_eq!(e.code, code, "{e}");
    }
    assert!(w.enrol.join(b"{}").await.is_err() && w.enrol.join(&[0xff; 100]).await.is_err());
    assert_eq!(w.members.all().len(), 1);
    assert!(w.store.list_all::<NodeSpec>(None).await.expect("list").is_empty());
    // Tokens are for admins, for a week at most, and for a bounded number of machines.
    for (who, body, code) in [
        (None, "{}", Code::Unauthenticated),
        (Some("bob"), "{}", Code::Denied),
        (Some("admin"), r#"{"ttlSeconds":0}"#, Code::Invalid),
        (Some("admin"), r#"{"ttlSeconds":9999999}"#, Code::Invalid),
        (Some("admin"), r#"{"forever":true}"#, Code::Invalid),
    ] {
        let e = w.enrol.make_token(who.map(caller), body.as_bytes()).await.err().expect("refused");
        assert_eq!(e.code, code);
    }
    for _ in 1..TOKENS_MAX {
        w.token(60).await;
    }
    assert_eq!(
        w.enrol.make_token(Some(caller("admin")), b"").await.err().expect("full").code,
        Code::Exhausted
    );
    assert!(ask(&w, &good).await.is_ok(), "the first token still holds");
}

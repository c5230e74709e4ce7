//! Address management. An address is taken by an exclusive claim in the same commit that writes it into
//! the port, and given back in the same commit that lets the port go: no address is ever held twice, and
//! none is lost, wherever a crash falls.

use async_trait::async_trait;
use photon_api::{Cidr, HostSpec, NetworkSpec, PortSpec, set_condition};
use photon_base::{Code, Error, Result, Uid};
use photon_reconcile::{Context, Next, Reconcile};
use photon_resource::{Key, Object};
use std::{collections::BTreeSet, net::Ipv4Addr};

/// The finalizer that keeps a port until its address is given back.
pub const IPAM_FINALIZER: &str = "prismnet-ipam";
/// The agent's finalizer: the address stays taken while an interface may still use it.
pub const AGENT_FINALIZER: &str = "prismnet-agent";

/// Gives addresses to ports.
pub struct Ipam;

/// The pool of claims of a network.
fn pool(network: Uid) -> String {
    format!("ipam/{network}")
}

/// The lowest address that guests may have and nobody has.
pub fn first_free(cidr: Cidr, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    // At most `taken` candidates can be refused, so the loop is bounded by what exists, not by the prefix.
    (2..cidr.size()).filter_map(|n| cidr.nth(n)).find(|a| cidr.is_assignable(*a) && !taken.contains(a))
}

/// The MAC address of a port: locally administered, 40 bits of its identity.
pub fn mac_of(port: Uid) -> String {
    let b = port.derive("mac").0.to_be_bytes();
    format!("02:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2], b[3], b[4])
}

fn choose(cx: &Context, port: &Object<PortSpec>, network: &Object<NetworkSpec>) -> Result<Ipv4Addr> {
    let others = cx.list::<PortSpec>(port.meta.project.as_ref())?;
    let on_this = others.iter().filter(|p| p.spec.network == port.spec.network && p.meta.id != port.meta.id);
    let taken: BTreeSet<Ipv4Addr> = on_this.filter_map(|p| p.status.address).collect();
    let cidr = network.spec.cidr;
    match port.spec.address {
        Some(a) if !cidr.is_assignable(a) => {
            Err(Error::invalid("spec.address", format!("{a} is not for guests of {}", network.meta.name))
                .why(format!("the network is {cidr}; its first two addresses and its last are reserved")))
        }
        Some(a) if taken.contains(&a) => {
            Err(Error::new(Code::Exhausted, format!("{a} is taken by another port of {}", network.meta.name)))
        }
        Some(a) => Ok(a),
        None => first_free(cidr, &taken).ok_or_else(|| {
            Error::new(Code::Exhausted, format!("network {} has no free address", network.meta.name))
                .why(format!("all {} addresses of {cidr} are taken", cidr.size().saturating_sub(3)))
                .hint("delete a vm, or make a larger network")
        }),
    }
}

#[async_trait]
impl Reconcile for Ipam {
    type Kind = PortSpec;

    fn name(&self) -> &'static str {
        "prismnet-ipam"
    }

    fn once_per_cluster(&self) -> bool {
        true
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(port) = cx.get::<PortSpec>(key.project.as_ref(), &key.name)? else { return Ok(Next::Done) };
        let network = cx.get::<NetworkSpec>(key.project.as_ref(), &port.spec.network)?;
        if !port.is_wanted() {
            return release(cx, &port, network.as_ref()).await;
        }
        if port.status.address.is_some() {
            return Ok(Next::Done);
        }
        let Some(network) = network else {
            return Err(Error::internal(format!("{key} is on a network that does not exist")));
        };
        let mut tx = cx.begin();
        match choose(cx, &port, &network) {
            Ok(address) => {
                let lost = Error::new(Code::Conflict, format!("{address} was taken meanwhile"));
                tx.claim(&pool(network.meta.id), &address.to_string(), port.meta.id, lost)?;
                tx.update(&port, |p| {
                    p.status.address = Some(address);
                    p.status.mac = Some(mac_of(p.meta.id));
                    p.status.phase = "allocated".into();
                    p.status.observed_generation = p.meta.generation;
                    set(p, true, "Allocated", String::new());
                })
                .await?;
            }
            Err(e) => {
                let mut failed = port.clone();
                failed.status.phase = "failed".into();
                failed.status.observed_generation = port.meta.generation;
                let reason = if e.code == Code::Exhausted { "AddressesExhausted" } else { "AddressRefused" };
                set(&mut failed, false, reason, e.to_string());
                if failed.status == port.status {
                    return Ok(Next::Done); // said already; ports that go will call us again
                }
                tx.update(&port, |p| p.status = failed.status).await?;
            }
        }
        tx.commit().await?;
        Ok(Next::Done)
    }
}

fn set(p: &mut Object<PortSpec>, ok: bool, reason: &str, message: String) {
    set_condition(&mut p.status.conditions, "Allocated", ok, reason, message, photon_rt::time::wall());
}

async fn release(
    cx: &Context,
    port: &Object<PortSpec>,
    network: Option<&Object<NetworkSpec>>,
) -> Result<Next> {
    // A host that was removed for good cleans nothing up any more.
    let gone = match &port.spec.host {
        Some(h) => cx.get::<HostSpec>(None, h)?.is_none(),
        None => false,
    };
    if port.has_finalizer(AGENT_FINALIZER) && !gone || !port.has_finalizer(IPAM_FINALIZER) {
        return Ok(Next::Done);
    }
    let mut tx = cx.begin();
    if let (Some(address), Some(network)) = (port.status.address, network) {
        tx.release(&pool(network.meta.id), &address.to_string())?;
    }
    let ours = [IPAM_FINALIZER, AGENT_FINALIZER];
    tx.update(port, |p| p.meta.finalizers.retain(|f| !ours.contains(&f.as_str()))).await?;
    tx.commit().await?;
    Ok(Next::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use photon_reconcile::harness::Harness;
    use photon_resource::{ROOT, Store};
    use serde_json::json;

    async fn small_network(store: Store) {
        store.make("project", "p", &json!({})).await.expect("made");
        store.make("network", "p/n", &json!({"cidr": "10.0.0.0/29"})).await.expect("made");
    }

    async fn drop_agent(store: &Store, name: &str) {
        let p = "p".parse().expect("name");
        let port =
            store.get::<PortSpec>(Some(&p), &name.parse().expect("name")).await.expect("get").expect("there");
        let mut tx = store.begin();
        tx.update(&port, |p| {
            p.meta.deleting = Some(photon_rt::time::wall());
            p.meta.finalizers.retain(|f| f != AGENT_FINALIZER);
        })
        .await
        .expect("update");
        tx.commit().await.expect("commit");
    }

    fn harness() -> Harness {
        Harness::new(photon_api::registry()).with(|| Ipam)
    }

    async fn ports(store: &Store) -> Vec<Object<PortSpec>> {
        store.list_all::<PortSpec>(None).await.expect("list")
    }

    #[tokio::test]
    async fn every_port_gets_its_own_address_until_none_is_left() {
        let store = harness()
            .run(&|s| {
                Box::pin(async move {
                    small_network(s.clone()).await;
                    s.make("port", "p/wish", &json!({"network": "n", "address": "10.0.0.4"}))
                        .await
                        .expect("made");
                    s.make("port", "p/zbad", &json!({"network": "n", "address": "10.0.0.1"}))
                        .await
                        .expect("made");
                    for i in 0..6 {
                        s.make("port", &format!("p/x{i}"), &json!({"network": "n"})).await.expect("made");
                    }
                })
            })
            .await
            .expect("settles");
        let all = ports(&store).await;
        let got: BTreeSet<Ipv4Addr> = all.iter().filter_map(|p| p.status.address).collect();
        // 10.0.0.0/29 has eight; network, gateway and broadcast are not for guests.
        assert_eq!(got.len(), 5);
        assert_eq!(all.iter().filter(|p| p.status.address.is_some()).count(), 5, "no address twice");
        let failed: Vec<&Object<PortSpec>> = all.iter().filter(|p| p.status.phase == "failed").collect();
        assert_eq!(failed.len(), 3);
        let reason = |n: &str| {
            all.iter().find(|p| p.meta.name.as_str() == n).map(|p| p.status.conditions[0].reason.clone())
        };
        assert_eq!(reason("zbad").as_deref(), Some("AddressRefused"));
        assert!(failed.iter().any(|p| p.status.conditions[0].message.contains("no free address")));
    }

    #[tokio::test]
    async fn an_address_is_given_back_and_given_again() {
        let store = harness()
            .run(&|s| {
                Box::pin(async move {
                    small_network(s.clone()).await;
                    s.make("port", "p/a", &json!({"network": "n"})).await.expect("made");
                })
            })
            .await
            .expect("settles");
        let first = ports(&store).await[0].status.address;
        drop_agent(&store, "a").await;
        let view = photon_reconcile::View::default();
        let (tx, _rx) = tokio::sync::mpsc::unbounded_channel();
        photon_reconcile::Feed::new(store.clone(), view.clone(), tx).fill().await.expect("fill");
        let key = Key::new("port", Some("p".parse().expect("name")), "a".parse().expect("name"));
        Ipam.reconcile(&Context::new(view, store.clone()), &key).await.expect("release");
        assert!(ports(&store).await.is_empty());
        let claims = photon_kv::Range::prefix(format!("{ROOT}claim/"));
        let left =
            store.kv().scan(claims, photon_kv::ReadAt::Latest, 10, photon_kv::Direction::Forward).await;
        assert!(left.expect("scan").items.is_empty());
        assert!(first.is_some());
    }

    #[tokio::test]
    async fn a_crash_anywhere_changes_nothing() {
        let crashes = harness()
            .crash_everywhere(&|s| {
                Box::pin(async move {
                    small_network(s.clone()).await;
                    for n in ["a", "b", "c"] {
                        s.make("port", &format!("p/{n}"), &json!({"network": "n"})).await.expect("made");
                    }
                    drop_agent(&s, "b").await;
                })
            })
            .await
            .expect("same end state");
        assert!(crashes >= 6, "{crashes}");
    }
}

use proptest::{collection::vec, prelude::*};

use super::*;

const GIB: u64 = 1 << 30;

fn app(name: &str) -> Name {
    name.parse().unwrap()
}

fn gpus(offers: &[(&str, u64)]) -> Supply {
    let offer = |(uuid, gib): &(&str, u64)| ((*uuid).to_owned(), Offer { memory_bytes: gib * GIB, ..Offer::default() });
    Supply { driver: Some("550.54.15".into()), trouble: String::new(), gpus: offers.iter().map(offer).collect() }
}

fn request(name: &str, needs: &str) -> Request {
    let needs = serde_json::from_str(needs).unwrap();
    Request { app: app(name), release: Digest::of(name.as_bytes()), needs, side: Side::A, beside: false }
}

fn given(supply: &Supply, grants: &mut Grants, request: &Request) -> Vec<String> {
    let grant = allot(supply, grants, request).unwrap();
    insert(grants, request, grant.clone());
    grant.uuids
}

fn refusal(supply: &Supply, grants: &Grants, request: &Request) -> String {
    allot(supply, grants, request).unwrap_err().message
}

#[test]
fn a_refusal_shows_its_arithmetic() {
    let mut supply = gpus(&[("GPU-abc", 24), ("GPU-def", 24)]);
    let mut grants = Grants::new();
    let vision = request("vision", r#"{"memory": "20Gi", "exclusive": false}"#);
    assert_eq!(given(&supply, &mut grants, &vision), ["GPU-abc"]);
    supply.gpus.get_mut("GPU-def").unwrap().problem = "is lost".into();
    let text = refusal(&supply, &grants, &request("b", r#"{"count": 2, "memory": "8Gi", "exclusive": false}"#));
    let wanted = "it wants 2 GPUs with 8 GiB free, shared; 0 of 2 would do; GPU-abc has 24 GiB, 20 GiB held by vision; \
                  GPU-def is lost; ";
    assert!(text.starts_with(wanted), "{text}");
    let text = refusal(&supply, &grants, &request("b", "{}"));
    assert!(text.starts_with("it wants 1 GPU, for itself; 0 of 2 would do; GPU-abc is held by vision; "), "{text}");
    let text = refusal(&Supply::default(), &grants, &request("b", "{}"));
    assert_eq!(text, "it wants 1 GPU, for itself; this box has no NVIDIA GPU");
    let wrong = allot(&supply, &grants, &request("b", r#"{"driver": ">=560"}"#)).unwrap_err();
    assert_eq!(wrong.reason, "GpuDriverVersion");
    assert!(wrong.message.contains(">=560") && wrong.message.contains("550.54.15"), "{wrong}");
}

#[test]
fn what_others_use_counts_and_what_the_app_itself_uses_does_not() {
    let mut supply = gpus(&[("GPU-a", 24)]);
    let offer = supply.gpus.get_mut("GPU-a").unwrap();
    (offer.foreign_bytes, offer.used_bytes) = (2 * GIB, [(app("vision"), 15 * GIB)].into());
    let mut grants = Grants::new();
    let needs = |gib: u64| format!(r#"{{"memory": "{gib}Gi", "exclusive": false}}"#);
    given(&supply, &mut grants, &request("vision", &needs(10)));
    let next = Request { release: Digest::of(b"2"), ..request("vision", &needs(22)) };
    assert_eq!(given(&supply, &mut grants.clone(), &next), ["GPU-a"], "its old instance goes when the new one comes");
    given(&supply, &mut grants.clone(), &request("other", &needs(7)));
    let text = refusal(&supply, &grants, &request("other", &needs(8)));
    assert!(text.contains("24 GiB, 2 GiB used by no app of Crossdock, 15 GiB held by vision"), "{text}");
    let text = refusal(&supply, &Grants::new(), &request("other", &needs(8)));
    assert!(text.contains("15 GiB used by vision, which holds none of it"), "{text}");
}

#[test]
fn an_app_keeps_its_gpu_and_a_trial_leaves_the_way_back_open() {
    let supply = gpus(&[("GPU-a", 8), ("GPU-b", 24)]);
    let mut grants = Grants::new();
    assert_eq!(given(&supply, &mut grants, &request("one", "{}")), ["GPU-a"], "the tightest");
    assert_eq!(given(&supply, &mut grants, &request("two", "{}")), ["GPU-b"]);
    grants.remove(&app("one"));
    let next = Request { release: Digest::of(b"next"), ..request("two", "{}") };
    assert_eq!(given(&supply, &mut grants, &next), ["GPU-b"], "though another is a tighter fit now");
    let small = r#"{"memory": "1Gi", "exclusive": false}"#;
    let next = Request { release: Digest::of(b"after"), ..request("two", small) };
    given(&supply, &mut grants, &next);
    let text = refusal(&supply, &grants, &request("three", r#"{"memory": "20Gi"}"#));
    assert!(text.contains("GPU-b is held by two for itself"), "{text}");
}

#[test]
fn two_instances_beside_each_other_both_hold_their_share() {
    let supply = gpus(&[("GPU-a", 24), ("GPU-b", 24)]);
    let share = |gib: u64| format!(r#"{{"memory": "{gib}Gi", "exclusive": false}}"#);
    let of = |release: &str, gib, side, beside| {
        let release = Digest::of(release.as_bytes());
        Request { release, side, beside, ..request("vision", &share(gib)) }
    };
    let mut grants = Grants::new();
    given(&supply, &mut grants, &of("1", 10, Side::A, false));
    assert_eq!(given(&supply, &mut grants, &of("2", 12, Side::B, true)), ["GPU-a"], "both fit, and a load is shared");
    let text = refusal(&gpus(&[("GPU-a", 24)]), &grants, &request("other", &share(4)));
    assert!(text.contains("GPU-a has 24 GiB, 22 GiB held by vision"), "{text}");
    let mut without = Grants::new();
    given(&supply, &mut without, &of("1", 10, Side::A, false));
    let text = refusal(&gpus(&[("GPU-a", 24)]), &without, &of("2", 16, Side::B, true));
    assert!(text.contains("GPU-a has 24 GiB, 10 GiB held by vision"), "{text}");
    allot(&gpus(&[("GPU-a", 24)]), &without, &of("2", 16, Side::A, false)).unwrap();
    // For itself it needs another one, and what an instance alone had on one side it has on the other.
    let mut grants = Grants::new();
    let alone = |release: &str, side, beside| Request {
        release: Digest::of(release.as_bytes()),
        side,
        beside,
        ..request("vision", "{}")
    };
    assert_eq!(given(&supply, &mut grants, &alone("1", Side::A, false)), ["GPU-a"]);
    refusal(&gpus(&[("GPU-a", 24)]), &grants, &alone("2", Side::B, true));
    assert_eq!(given(&supply, &mut grants, &alone("2", Side::B, true)), ["GPU-b"]);
    assert_eq!(given(&supply, &mut grants, &alone("1", Side::B, false)), ["GPU-a"]);
    assert!(grants[&app("vision")].iter().all(|grant| grant.side == Side::B), "they never run at the same time");
}

fn supplies() -> impl Strategy<Value = Supply> {
    let offer = (1_u64..25, 0_u64..4, 0_u8..5).prop_map(|(gib, foreign, sick)| Offer {
        memory_bytes: gib * GIB,
        foreign_bytes: foreign * GIB,
        used_bytes: BTreeMap::new(),
        problem: if sick == 0 { "is lost".into() } else { String::new() },
    });
    vec(offer, 0..5).prop_map(|offers| {
        let gpus = offers.into_iter().enumerate().map(|(at, offer)| (format!("GPU-{at}"), offer)).collect();
        Supply { driver: Some("550".into()), trouble: String::new(), gpus }
    })
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let one = (1_u32..4, 1_u64..20, any::<bool>());
    vec(one, 0..7).prop_map(|all| {
        let request = |(at, (count, gib, exclusive)): (usize, (u32, u64, bool))| {
            request(
                &format!("app-{at}"),
                &format!(r#"{{"count": {count}, "memory": "{gib}Gi", "exclusive": {exclusive}}}"#),
            )
        };
        all.into_iter().enumerate().map(request).collect()
    })
}

/// What was given of each GPU, of requests and what was there before.
fn check(supply: &Supply, grants: &Grants) {
    for (uuid, offer) in &supply.gpus {
        let holders: Vec<&Grant> = grants.values().flatten().filter(|grant| grant.uuids.contains(uuid)).collect();
        if holders.is_empty() {
            continue;
        }
        assert!(offer.problem.is_empty(), "{uuid} is sick and was given");
        let sum: u64 = holders.iter().map(|grant| grant.memory_bytes).sum();
        assert!(sum + offer.foreign_bytes <= offer.memory_bytes, "{uuid} is given more often than it has memory");
        assert!(holders.len() == 1 || holders.iter().all(|grant| !grant.exclusive), "{uuid} is for one alone");
    }
}

proptest! {
    #[test]
    fn no_gpu_is_given_twice_and_the_order_of_arrival_does_not_matter(
        supply in supplies(),
        (requests, shuffled) in requests().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        let answers = allot_all(&supply, &Grants::new(), &requests);
        prop_assert_eq!(&answers, &allot_all(&supply, &Grants::new(), &shuffled));
        let mut grants = Grants::new();
        for (request, answer) in &answers {
            match answer {
                Ok(grant) => {
                    let distinct: BTreeSet<&String> = grant.uuids.iter().collect();
                    prop_assert_eq!(distinct.len(), usize::try_from(request.needs.count).unwrap());
                    insert(&mut grants, request, grant.clone());
                }
                Err(refusal) => prop_assert!(refusal.message.contains("it wants ")),
            }
        }
        check(&supply, &grants);
        // Everything starts again: everybody has what they had.
        let again = allot_all(&supply, &grants, &shuffled);
        for (request, answer) in &again {
            if let Some(own) = grants.get(&request.app) {
                prop_assert_eq!(answer.as_ref().ok(), own.first());
            }
        }
        // One after the other, in any order, nothing is given twice either.
        let mut grants = Grants::new();
        for request in &shuffled {
            if let Ok(grant) = allot(&supply, &grants, request) {
                insert(&mut grants, request, grant);
            }
        }
        check(&supply, &grants);
    }

    #[test]
    fn a_sick_gpu_takes_nothing_from_those_on_others(supply in supplies(), requests in requests(), sick in 0_usize..5) {
        let mut grants = Grants::new();
        for (request, answer) in allot_all(&supply, &Grants::new(), &requests) {
            if let Ok(grant) = answer {
                insert(&mut grants, &request, grant);
            }
        }
        let uuid = format!("GPU-{sick}");
        let mut supply = supply;
        if let Some(offer) = supply.gpus.get_mut(&uuid) {
            offer.problem = "is lost".into();
        }
        for request in &requests {
            let Some([before]) = grants.get(&request.app).map(Vec::as_slice) else { continue };
            if !before.uuids.contains(&uuid) {
                let now = allot(&supply, &grants, request);
                prop_assert_eq!(now.as_ref(), Ok(before));
            }
        }
    }
}

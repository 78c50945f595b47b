#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn settings() -> Settings {
    Settings {
        node: NodeId::new("worker-a").unwrap(),
        port: 7946,
        underlay: Vec::new(),
        host_addresses: Vec::new(),
        startup_taint: Some("fabric.dev/agent-not-ready".to_owned()),
    }
}

fn node() -> OwnNode {
    OwnNode {
        uid: "uid-1".to_owned(),
        resource_version: "7".to_owned(),
        pod_cidrs: vec!["10.244.1.0/24".to_owned(), "fd00:1::/64".to_owned()],
        internal_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        taints: Vec::new(),
        network_unavailable: Some(("False".to_owned(), FABRIC_IS_UP.to_owned())),
    }
}

fn clock() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn healthy() -> Health {
    Health {
        ready: true,
        message: "pods can be attached".to_owned(),
    }
}

/// All is as it should be.
fn in_order() -> Facts {
    let (_, wanted) = local_spec(&settings(), &node(), &[]).unwrap();
    let own = Own {
        uid: "uid-2".to_owned(),
        generation: 3,
        owners: vec!["uid-1".to_owned()],
        conditions: conditions(&[], &healthy(), None, 3, clock()),
        deleting: false,
    };
    Facts {
        name: "worker-a".to_owned(),
        startup_taint: settings().startup_taint,
        node: Some(node()),
        listed: true,
        shown: Some(Shown {
            spec: Ok(wanted.clone()),
            own: Box::new(own),
        }),
        wanted: Some(wanted),
        lack: None,
        conflict: None,
        health: Some(healthy()),
    }
}

/// The write that is next, noted as done.
fn write(memory: &mut Memory, facts: &Facts, now: Instant) -> Option<Write> {
    let Step::Write(write) = memory.next(facts, now, clock()) else {
        return None;
    };
    memory.done("worker-a", write.clone(), now);
    Some(write)
}

/// A Node's ranges and addresses of both families become the spec; an override takes the place of the
/// addresses.
#[test]
fn the_spec_is_what_the_node_says() {
    let key: KeyHash = "0a".repeat(32).parse().unwrap();
    let (spec, wanted) = local_spec(&settings(), &node(), &[key]).unwrap();
    assert_eq!(spec.underlay.len(), 2);
    assert_eq!(spec.identity_keys, [key]);
    let written = serde_json::to_value(&wanted).unwrap();
    let expected = json!({
        "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"],
        "endpoints": [
            {"address": "192.0.2.1", "port": 7946},
            {"address": "2001:db8::1", "port": 7946},
        ],
        "hostAddresses": [],
        "identity": {"keys": [{"sha256": "0a".repeat(32)}]},
    });
    assert_eq!(written, expected);
    let other = Settings {
        underlay: vec!["198.51.100.1".parse().unwrap()],
        port: 8000,
        ..settings()
    };
    let (spec, _) = local_spec(&other, &node(), &[]).unwrap();
    assert_eq!(spec.underlay, ["198.51.100.1:8000".parse().unwrap()]);
}

/// What a Node lacks is named, with the cure.
#[test]
fn what_a_node_lacks_is_named() {
    type Spoil = fn(&mut OwnNode);
    let cases: [(&str, &str, Spoil); 4] = [
        ("PodCIDRsMissing", "--allocate-node-cidrs", |node| {
            node.pod_cidrs.clear()
        }),
        ("AddressMissing", "--node-ip", |node| {
            node.internal_ips.clear()
        }),
        ("InvalidNode", "too large", |node| {
            node.pod_cidrs = vec!["10.0.0.0/7".into()]
        }),
        ("InvalidNode", "lies in its pod range", |node| {
            node.internal_ips = vec!["10.244.1.7".parse().unwrap()];
        }),
    ];
    for (reason, words, spoil) in cases {
        let mut node = node();
        spoil(&mut node);
        let lack = local_spec(&settings(), &node, &[]).unwrap_err();
        assert_eq!(lack.reason, reason);
        assert!(
            lack.note.contains(words) && lack.note.contains("worker-a"),
            "{}",
            lack.note
        );
        // It becomes an Event, once.
        let mut memory = Memory::default();
        let facts = Facts {
            wanted: None,
            lack: Some(lack.clone()),
            ..in_order()
        };
        let now = Instant::now();
        let Some(Write::Event(note)) = write(&mut memory, &facts, now) else {
            panic!("no Event");
        };
        assert_eq!((note.reason.as_str(), note.note), (reason, lack.note));
        assert_eq!(memory.next(&facts, now, clock()), Step::Rest);
    }
}

/// When all is in order nothing is written, however long that lasts; without a Node neither.
#[test]
fn what_is_in_order_is_left_alone() {
    let mut memory = Memory::default();
    let now = Instant::now();
    for hours in 0..3 {
        let later = now + Duration::from_secs(hours * 3_600);
        assert_eq!(memory.next(&in_order(), later, clock()), Step::Rest);
    }
    let gone = Facts {
        node: None,
        shown: None,
        ..in_order()
    };
    assert_eq!(memory.next(&gone, now, clock()), Step::Rest);
}

/// A new node writes its object once and waits for the watch to show it; not before the list is here.
#[test]
fn a_new_node_writes_its_object_once() {
    let mut memory = Memory::default();
    let now = Instant::now();
    let mut facts = Facts {
        shown: None,
        listed: false,
        ..in_order()
    };
    assert_eq!(memory.next(&facts, now, clock()), Step::Rest);
    facts.listed = true;
    let wanted = facts.wanted.clone().unwrap();
    let spec = Write::Spec(wanted, "uid-1".to_owned());
    assert_eq!(write(&mut memory, &facts, now), Some(spec.clone()));
    assert_eq!(
        memory.next(&facts, now, clock()),
        Step::Wait(now + SHOWN_MAX)
    );
    assert_eq!(write(&mut memory, &facts, now + SHOWN_MAX), Some(spec));
    assert_eq!(memory.next(&in_order(), now, clock()), Step::Rest);
}

/// A Node that was replaced under the same name owns the object from then on; new keys are written.
#[test]
fn a_replaced_node_and_new_keys_are_written() {
    let mut memory = Memory::default();
    let now = Instant::now();
    assert_eq!(memory.next(&in_order(), now, clock()), Step::Rest);
    let mut facts = in_order();
    facts.node.as_mut().unwrap().uid = "uid-9".to_owned();
    let Some(Write::Spec(_, uid)) = write(&mut memory, &facts, now) else {
        panic!("nothing is written");
    };
    assert_eq!(uid, "uid-9");
    let mut facts = in_order();
    let key = Key {
        sha256: "0b".repeat(32),
    };
    facts.wanted.as_mut().unwrap().identity.keys.push(key);
    assert!(matches!(
        write(&mut memory, &facts, now),
        Some(Write::Spec(..))
    ));
    assert_eq!(memory.pending, [], "its own change is no foreign one");
}

/// What somebody else changes is put back and told; who insists is answered ever more slowly.
#[test]
fn foreign_changes_are_put_back() {
    let mut memory = Memory::default();
    let mut now = Instant::now();
    assert_eq!(memory.next(&in_order(), now, clock()), Step::Rest);
    let mut changed = in_order();
    changed.shown.as_mut().unwrap().spec = Err("not even a spec".to_owned());
    let mut waits = Vec::new();
    for _ in 0..9 {
        if let Step::Wait(until) = memory.next(&changed, now, clock()) {
            waits.push((until - now).as_secs());
            now = until;
        }
        assert!(matches!(
            write(&mut memory, &changed, now),
            Some(Write::Spec(..))
        ));
        if let Some(Write::Event(note)) = write(&mut memory, &in_order(), now) {
            assert!(waits.is_empty(), "told twice");
            assert_eq!(note.reason, "ForeignChangeReverted");
        }
        assert_eq!(memory.next(&in_order(), now, clock()), Step::Rest);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    now += CORRECT_FORGET;
    assert!(matches!(
        write(&mut memory, &changed, now),
        Some(Write::Spec(..))
    ));
}

/// The status is written when a condition changes: at once if Ready changes, else once a minute. The
/// time of the last change is kept.
#[test]
fn the_status_is_written_sparingly() {
    let mut memory = Memory::default();
    let now = Instant::now();
    let mut facts = in_order();
    facts.health = Some(Health {
        ready: true,
        message: "fabric0: no route".to_owned(),
    });
    let later = clock() + Duration::from_secs(1_000);
    let Step::Write(first) = memory.next(&facts, now, later) else {
        panic!("nothing is written");
    };
    let Write::Status(written) = &first else {
        panic!("{first:?}");
    };
    assert_eq!(
        written[0].last_transition_time.0,
        clock(),
        "Ready has not changed"
    );
    assert_eq!(written[0].observed_generation, Some(3));
    memory.done("worker-a", first, now);
    facts.health.as_mut().unwrap().message = "another word".to_owned();
    assert_eq!(
        memory.next(&facts, now, later),
        Step::Wait(now + STATUS_INTERVAL)
    );
    facts.health = Some(Health {
        ready: false,
        message: "a worker has ended".to_owned(),
    });
    let Some(Write::Status(written)) = write(&mut memory, &facts, now) else {
        panic!("nothing is written");
    };
    assert_eq!(
        (written[0].status.as_str(), written[0].reason.as_str()),
        ("False", "NotReady")
    );
    assert_eq!(
        memory.next(&facts, now, later),
        Step::Wait(now + STATUS_INTERVAL)
    );
}

/// A conflict is a condition with the finding's words, and an Event.
#[test]
fn a_conflict_is_shown() {
    let finding = Finding {
        node: "worker-a".to_owned(),
        field: "spec".to_owned(),
        reason: super::super::convert::Reason::AddressConflict,
        problem: "it claims what is another's".to_owned(),
        cure: "give it others".to_owned(),
    };
    let facts = Facts {
        conflict: Some(finding.clone()),
        ..in_order()
    };
    let mut memory = Memory::default();
    let now = Instant::now();
    let Some(Write::Event(note)) = write(&mut memory, &facts, now) else {
        panic!("no Event");
    };
    assert_eq!(note.reason, "AddressConflict");
    let Some(Write::Status(written)) = write(&mut memory, &facts, now) else {
        panic!("no status");
    };
    assert_eq!(
        (written[1].type_.as_str(), written[1].status.as_str()),
        ("AddressesAccepted", "False")
    );
    assert_eq!(written[1].message, finding.to_string());
}

/// Once pods can be attached the Node's network is up and the start-up taint goes; others stay.
#[test]
fn a_ready_node_is_opened() {
    let mut facts = in_order();
    let other = json!({"key": "other", "effect": "NoSchedule"});
    let ours = json!({"key": "fabric.dev/agent-not-ready", "effect": "NoSchedule"});
    let node = facts.node.as_mut().unwrap();
    node.taints = vec![other.clone(), ours];
    node.network_unavailable = Some(("True".to_owned(), "NoRouteCreated".to_owned()));
    let now = Instant::now();
    let mut memory = Memory::default();
    assert_eq!(write(&mut memory, &facts, now), Some(Write::NetworkUp));
    let taints = Write::Taints(vec![other], "7".to_owned());
    assert_eq!(write(&mut memory, &facts, now), Some(taints));
    assert_eq!(
        memory.next(&facts, now, clock()),
        Step::Wait(now + SHOWN_MAX)
    );

    facts.health = Some(Health {
        ready: false,
        message: String::new(),
    });
    facts.shown = None;
    facts.wanted = None;
    let mut memory = Memory::default();
    assert_eq!(memory.next(&facts, now, clock()), Step::Rest);
}

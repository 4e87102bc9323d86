//! Calls of honest nodes and readers: who each side is, what each may do, how calls end.

use std::time::Duration;

use bytes::Bytes;
use sealcast::core::id::NodeName;
use sealcast::core::limits;
use sealcast::rpc::client::{DialError, explain, retryable};
use sealcast::rpc::proto;
use tonic::Code;

use crate::rpc::world::*;

#[tokio::test]
async fn each_side_knows_the_other_by_its_key_and_the_exchange_is_hybrid() {
    let environment = environment().await;
    for (key, identity) in [(13, "node b"), (31, "reader app"), (32, "reader other")] {
        let answer = who(&environment.dialer(key)).await.unwrap();
        assert_eq!(answer.node, identity);
        assert_eq!(answer.alarms[0].name, "X25519MLKEM768");
    }
}

#[tokio::test]
async fn a_key_outside_the_directory_reaches_no_service() {
    let environment = environment().await;
    // Whoever it is learns why, each time, however the connection's end and the first call meet.
    for _ in 0..20 {
        let dialer = environment.dialer_out_of_time(99);
        let status = who(&dialer).await.unwrap_err();
        assert!(retryable(&status), "{status:?}");
        assert!(explain(&status).contains("does not let this key in"), "{}", explain(&status));
        let again = who(&dialer).await.unwrap_err();
        assert!(explain(&again).contains("does not let this key in"), "{}", explain(&again));
        assert!(explain(&again).contains("not tried again yet"), "{}", explain(&again));
    }
    assert_eq!(environment.calls(), 0);
}

#[tokio::test]
async fn a_node_that_is_another_than_the_one_dialled_is_refused() {
    let environment = environment().await;
    let dialer = environment.dialer_out_of_time(31);
    let mut client = dialer.reader(&name("b")).unwrap();
    let status = client.node_status(proto::NodeStatusRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(explain(&status).contains("node b at localhost"), "{}", explain(&status));
    assert!(explain(&status).contains("another key than the directory gives"), "{}", explain(&status));
    assert_eq!(environment.calls(), 0);
    // At once again: the dialer does not hammer.
    let status = client.node_status(proto::NodeStatusRequest {}).await.unwrap_err();
    assert!(explain(&status).contains("not tried again yet"), "{}", explain(&status));
    let unknown: NodeName = name("nobody");
    assert_eq!(dialer.connect(&unknown).unwrap_err(), DialError::Unknown { node: unknown });
}

#[tokio::test]
async fn a_reader_cannot_do_what_nodes_do() {
    let environment = environment().await;
    let status = environment.dialer(31).peer(&name("a")).unwrap().raft_call(raft(1, 3)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(!retryable(&status));
    let answer = environment.dialer(13).peer(&name("a")).unwrap().raft_call(raft(1, 3)).await.unwrap();
    assert_eq!(answer.into_inner().payload, vec![3; 3]);
}

#[tokio::test]
async fn a_group_that_does_not_exist_and_one_that_the_node_is_not_in_look_alike() {
    let environment = environment().await;
    let mut client = environment.dialer(13).peer(&name("a")).unwrap();
    let probe = |group: Vec<u8>| proto::ProbeRequest { group: group.into(), incarnation: Bytes::new() };
    let orders = environment.told.gate.directory().destinations[&name("orders")].tag;
    assert_eq!(client.probe(probe(orders.0.to_vec())).await.unwrap().into_inner().node, "b");
    let status = client.probe(probe(vec![1; 16])).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let status = client.probe(probe(vec![1; 3])).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "ProbeRequest.group has 3 bytes, not 16");
}

#[tokio::test]
async fn a_reader_that_a_new_directory_leaves_out_is_out() {
    let environment = environment().await;
    let (app, other) = (environment.dialer(31), environment.dialer(32));
    who(&app).await.unwrap();
    who(&other).await.unwrap();
    environment.set.send_replace(directory(2, environment.addresses.clone(), &[("other", 32)]));
    // On the connection that stands, and on a new one.
    assert_eq!(who(&app).await.unwrap_err().code(), Code::PermissionDenied);
    let calls = environment.calls();
    let status = who(&environment.dialer(31)).await.unwrap_err();
    assert!(explain(&status).contains("does not let this key in"), "{}", explain(&status));
    assert_eq!(environment.calls(), calls);
    assert_eq!(who(&other).await.unwrap().node, "reader other");
}

#[tokio::test]
async fn a_message_over_the_limit_reaches_no_service() {
    let environment = environment().await;
    let dialer = environment.dialer(13);
    let fits = limits::RPC_BYTES - 64;
    let answer = dialer.peer(&name("a")).unwrap().raft_call(raft(1, fits)).await.unwrap();
    assert_eq!(answer.into_inner().payload.len(), fits);
    let calls = environment.calls();
    let status = dialer.peer(&name("a")).unwrap().raft_call(raft(1, limits::RPC_BYTES)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(!retryable(&status));
    assert_eq!(environment.calls(), calls);
}

#[tokio::test]
async fn a_large_answer_streams() {
    let environment = environment().await;
    let total = 64 * 1024 * 1024 + 1;
    let request = proto::GetRequest { offset: total, ..Default::default() };
    let mut client = environment.dialer(31).reader(&name("a")).unwrap();
    let mut stream = client.get(request).await.unwrap().into_inner();
    let mut got = 0;
    while let Some(message) = stream.message().await.unwrap() {
        let Some(proto::read_response::Part::Data(data)) = message.part else { panic!("only data is sent") };
        assert!(data.len() <= CHUNK && data.iter().all(|byte| *byte == 7));
        got += data.len() as u64;
    }
    assert_eq!(got, total);
}

#[tokio::test]
async fn connections_that_say_nothing_hold_up_nobody() {
    let environment = environment().await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(tokio::net::TcpStream::connect(&environment.addresses[0]).await.unwrap());
    }
    assert_eq!(who(&environment.dialer(31)).await.unwrap().node, "reader app");
}

#[tokio::test]
async fn a_call_that_runs_ends_well_after_the_stop() {
    let environment = environment().await;
    let mut client = environment.dialer(13).peer(&name("a")).unwrap();
    let call = tokio::spawn(async move { client.raft_call(raft(9, 5)).await });
    environment.told.arrived.notified().await;
    environment.stop.cancel();
    // The port closes as soon as the stop is seen: then nobody is let in any more.
    while tokio::net::TcpStream::connect(&environment.addresses[0]).await.is_ok() {
        tokio::task::yield_now().await;
    }
    environment.told.go.notify_one();
    assert_eq!(call.await.unwrap().unwrap().into_inner().payload.len(), 5);
    environment.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_node_that_goes_away_breaks_its_calls_and_is_reached_again_when_it_is_back() {
    let first = environment().await;
    let dialer = first.dialer(13);
    let mut client = dialer.peer(&name("a")).unwrap();
    let call = tokio::spawn(async move { client.raft_call(raft(9, 5)).await });
    first.told.arrived.notified().await;
    first.served.abort();
    let status = call.await.unwrap().unwrap_err();
    assert!(retryable(&status), "{status:?}");
    let _ = first.served.await;

    let _second = environment_at(&first.addresses[0]).await;
    let back = async {
        while let Err(status) = dialer.peer(&name("a")).unwrap().raft_call(raft(1, 1)).await {
            assert!(retryable(&status), "{status:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), back).await.expect("reached again");
}

#[tokio::test]
async fn a_call_can_be_given_a_limit() {
    let environment = environment().await;
    let dialer = environment.dialer(13);
    let mut client = dialer.peer(&name("a")).unwrap();
    let status = dialer.within(Duration::from_millis(50), client.raft_call(raft(9, 1))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(retryable(&status));
}

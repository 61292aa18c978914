//! Peers that are silent.

use super::*;

#[test]
fn a_silent_peer_is_dead() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::with(NetworkConfig { missed_heartbeats: 3, ..config() }, ConnectionParameters::default());
    // It announces one every 60 ms.
    let (peer, endpoint) = server.greeted_by(&hello_with(12, &60_u32.to_le_bytes()));
    // It keeps its word for a while, within what is returned to it.
    let stats = server.node.backend.stats(endpoint).expect("it is there");
    let (began, last) = (Instant::now(), Cell::new(Instant::now()));
    let (mut sent, mut heard, mut credits, mut owed) = (0, 0, 2, 0);
    server.until(&[&peer], "ten heartbeats are heard", || {
        for packet in &peer.arrived()[heard..] {
            credits += packet.control;
            owed += u8::from(packet.is_control() && packet.kind != util::CREDITS);
            heard += 1;
        }
        if sent < 10 && credits > 0 && began.elapsed() >= Duration::from_millis(40 * sent) {
            last.set(Instant::now());
            peer.send(&Packet { control: std::mem::take(&mut owed), ..Packet::new(HEARTBEAT) });
            (sent, credits) = (sent + 1, credits - 1);
        }
        stats.heartbeats_received.get() == 10
    });
    assert_eq!(server.node.closed(endpoint), None);
    server.node.send(endpoint, b"are you there?", 0);
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::HeartbeatTimeout));
    assert!(last.get().elapsed() >= Duration::from_millis(3 * 60), "{:?}", last.get().elapsed());
    server.node.check_keys(endpoint, 1);
    assert_eq!(server.until_end(&peer), End::Shutdown);
    server.check();
}

#[test]
fn idle_backends_stay_alive() {
    let Some(_beside) = beside_others() else { return };
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let interval = Duration::from_millis(20);
    let rdma = RdmaParameters { receives: 4, ..config().rdma };
    let config = NetworkConfig { heartbeat_interval: interval, missed_heartbeats: 10, rdma, ..config() };
    let (server, client) = (util::node_with(&ev, config.clone()), util::node_with(&ev, config));
    let address = server.listen();
    let out = client.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
    until(&ev, &[], "established", || server.established().len() == 1 && client.established().len() == 1);
    let back = server.established()[0];
    let stats = [client.backend.stats(out).expect("it is there"), server.backend.stats(back).expect("it is there")];
    // Idle, and again after both have sent as much as they may at once.
    for round in 0..5 {
        let heard = stats.each_ref().map(|stats| stats.heartbeats_received.get());
        until(&ev, &[], "heartbeats are heard", || {
            stats.iter().zip(heard).all(|(stats, heard)| stats.heartbeats_received.get() >= heard + 12)
        });
        for key in 0..40 {
            client.send(out, &[round; 60_000], key);
            server.send(back, &[round; 60_000], key);
        }
        let count = 40 * (usize::from(round) + 1);
        until(&ev, &[], "all arrived", || {
            let received = |stats: &netio3_core::ConnectionCounters| stats.messages_received.get() as usize == count;
            stats.iter().all(|stats| received(stats) && stats.queued_messages.get() == 0)
        });
    }
    assert!(stats.iter().all(|stats| stats.heartbeats_sent.get() >= 60), "{stats:?}");
    assert_eq!((client.closed(out), server.closed(back)), (None, None));
}

//! The side that connects.

use std::net::SocketAddr;
use std::time::Duration;

use netio3_libfabric::fabric::CmEvent;

use crate::args::{Common, Mode};
use crate::control::Control;
use crate::failure::Failure;
use crate::pattern::Content;
use crate::plan::{Plan, first_that_answers};
use crate::raw_fabric::link::{Link, RECEIVE};
use crate::raw_fabric::net::{Batch, CONNECT_DEADLINE, GREETING, Net, explain, find, is_ours};
use crate::raw_fabric::outbox::Outbox;
use crate::raw_fabric::receives::Came;

/// The connections to one address.
pub struct Client {
    // Before the net, so that they go first.
    pub links: Vec<Link>,
    pub net: Net,
    /// How messages are sent: copied where they have more pieces than the provider takes.
    pub mode: Mode,
    batch: Batch,
    /// Connections where something happened.
    touched: Vec<usize>,
    /// What was said on which connection; `None` if it makes no sense.
    pub controls: Vec<(usize, Option<Control>)>,
}

impl Client {
    /// Connects to the first of several addresses that answers, and announces the messages. `mode`: how they are
    /// to be sent. `role`: what should listen there.
    pub fn new(common: &Common, addresses: &[SocketAddr], plan: &Plan, mode: Mode, role: &str) -> Result<Self, Failure> {
        let (mut client, address) = first_that_answers(addresses, |address| Self::open(common, address, plan, mode))?;
        client.begin(&plan.in_mode(client.mode), address, role)?;
        Ok(client)
    }

    fn open(common: &Common, address: SocketAddr, plan: &Plan, mode: Mode) -> Result<Self, Failure> {
        let (library, info) = find(common, address, false)?;
        let failed = |why: String| Failure::NoConnection(format!("cannot connect to {address}: {why}"));
        let net = Net::open(common, &library, &info).map_err(failed)?;
        let (links, touched, controls) = Default::default();
        let gathers = plan.layout.pieces < info.iov_limit().min(Outbox::MAX_PIECES);
        let mode = if mode == Mode::ZeroCopy && !gathers { Mode::Copy } else { mode };
        let mut client = Self { links, net, mode, batch: Batch::new(), touched, controls };
        let content = Content::new(&plan.layout);
        let bodies = client.net.register(&info, &content).map_err(failed)?;
        for index in 0..plan.connections as usize {
            let mut link = client.net.link(&info, index, |allowed| Outbox::depth(mode, allowed)).map_err(failed)?;
            let limit = plan.count(index).unwrap_or(u64::MAX);
            let content = content.of_stream(index as u16);
            let outbox = Outbox::new(&link, bodies.as_ref(), content, plan.layout.size, limit, mode).map_err(failed)?;
            link.outbox = Some(outbox);
            link.endpoint.connect(address, GREETING).map_err(|error| failed(error.to_string()))?;
            client.links.push(link);
            client.wait_until_connected(index).map_err(failed)?;
        }
        Ok(client)
    }

    fn wait_until_connected(&mut self, index: usize) -> Result<(), String> {
        while !self.links[index].connected {
            if !self.net.next(&mut self.batch, false, Some(CONNECT_DEADLINE))? {
                return Err("no answer".into());
            }
            match self.batch.event.take() {
                Some(CmEvent::Connected { endpoint, data }) if is_ours(&data) => self.links[endpoint].connected = true,
                Some(CmEvent::Connected { .. }) => return Err("what listens there is not `netio3-bench --backend raw-fabric`".into()),
                Some(CmEvent::Error { error, .. }) => return Err(error.to_string()),
                Some(_) => return Err("the peer hung up".into()),
                None => {}
            }
            // Nothing comes before the announcement but the failure that an event explains.
            self.batch.failed = None;
        }
        Ok(())
    }

    /// Announces the messages on all connections and waits until all are welcome; only then they are sent.
    fn begin(&mut self, plan: &Plan, address: SocketAddr, role: &str) -> Result<(), Failure> {
        let silent = |why: String| {
            let text = format!("what listens on {address} does not answer as `netio3-bench {role} --backend raw-fabric` does: {why}");
            Failure::NoConnection(text)
        };
        let outboxes: Vec<Option<Outbox>> = self.links.iter_mut().map(|link| link.outbox.take()).collect();
        for (index, link) in self.links.iter_mut().enumerate() {
            link.say(Control::Start(plan.start(index)).encode(plan.layout.size));
            link.pump().map_err(silent)?;
        }
        let mut welcome = 0;
        while welcome < self.links.len() {
            self.turn(CONNECT_DEADLINE, |_| {}).map_err(silent)?;
            for (index, control) in self.controls.drain(..) {
                match control {
                    Some(Control::Welcome) => {
                        welcome += 1;
                        let Link { receives, domain, .. } = &mut self.links[index];
                        if role == "echo" {
                            receives.expect(domain, plan.layout.size, false, true).map_err(silent)?;
                        }
                    }
                    Some(Control::Refused { why }) => return Err(Failure::NoConnection(format!("{address} refused: {why}"))),
                    _ => return Err(silent("it says something else".into())),
                }
            }
            self.pump().map_err(silent)?;
        }
        for (link, outbox) in self.links.iter_mut().zip(outboxes) {
            link.outbox = outbox;
        }
        Ok(())
    }

    /// Waits until something happens, and takes what came.
    #[inline]
    pub fn turn(&mut self, patience: Duration, mut on_message: impl FnMut(&[u8])) -> Result<(), String> {
        let Self { links, net, batch, touched, controls, .. } = self;
        let busy = touched.iter().any(|index| links[*index].sends.again);
        if !net.next(batch, busy, Some(patience))? {
            return Err(format!("no progress for {} s", patience.as_secs()));
        }
        match batch.event.take() {
            None | Some(CmEvent::Connected { .. } | CmEvent::ConnectRequest { .. }) => {}
            Some(CmEvent::Shutdown { .. }) => return Err("the peer hung up".into()),
            Some(CmEvent::Error { error, .. }) => return Err(error.to_string()),
        }
        if let Some(failed) = batch.failed.take() {
            return Err(explain(&failed));
        }
        touched.retain(|index| links[*index].sends.again);
        for completion in batch.completions() {
            let index = completion.context >> 1;
            let link = &mut links[index];
            if completion.context & 1 == RECEIVE {
                link.take(completion.len, false, |came| match came {
                    Came::Message(message) => on_message(message),
                    Came::Control(message) => controls.push((index, Control::decode(message))),
                })?;
            } else {
                link.sends.complete();
            }
            if touched.last() != Some(&index) {
                touched.push(index);
            }
        }
        Ok(())
    }

    /// Sends on all connections where something happened.
    #[inline]
    pub fn pump(&mut self) -> Result<(), String> {
        self.touched.iter().try_for_each(|index| self.links[*index].pump())
    }

    /// Sends on all connections.
    pub fn pump_all(&mut self) -> Result<(), String> {
        self.touched.clear();
        self.touched.extend(0..self.links.len());
        self.pump()
    }

    /// The connections where something happened.
    pub fn touched(&self) -> &[usize] {
        &self.touched
    }

    /// Says goodbye to everybody. The other side does not wait for more than that the connections end.
    pub fn hang_up(self) {
        for link in &self.links {
            // A connection that ended already needs no more.
            let _ = link.endpoint.shutdown();
        }
    }
}

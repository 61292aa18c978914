//! `ping` over bare libfabric calls.

use std::time::Instant;

use crate::args::{Backend, Common, Mode, PingArgs};
use crate::begin::begin;
use crate::check::StreamCheck;
use crate::control::{Control, Tally};
use crate::failure::Failure;
use crate::plan::{Plan, dial, only_with_netio3};
use crate::raw_fabric::client::Client;
use crate::raw_fabric::net::STALL_DEADLINE;
use crate::report::{Report, RttHistogram};

/// Measures round trips.
pub fn ping(common: &Common, args: &PingArgs) -> Result<Report, Failure> {
    only_with_netio3(Backend::RawFabric, args)?;
    let plan = Plan::of_ping(common, args, Mode::ZeroCopy)?;
    let mut client = Client::new(common, &dial(args.connect.as_deref())?, &plan, Mode::ZeroCopy, "echo")?;
    let mut run = Run {
        check: StreamCheck::new(args.size, 0, common.verify),
        times: RttHistogram::new(),
        sent_at: vec![Instant::now(); args.window.min(args.count) as usize],
        answered: 0,
        count: args.count,
        size: args.size,
    };
    let began = begin();
    let (tally, error) = match run.converse(&mut client) {
        Ok(tally) => (Some(tally), None),
        Err(error) => (None, Some(error)),
    };
    let seconds = began.elapsed();
    let sent = client.links[0].outbox.as_ref().map_or(0, |outbox| outbox.sent());
    let mut total = run.check.tally(Some(sent));
    if let Some(tally) = tally {
        total.add_faults(&tally);
    }
    let mut report = Report::new("ping", Backend::RawFabric, &total, seconds);
    report.mode = Some(client.mode);
    report.size = args.size;
    report.rtt_us = run.times.summary();
    report.error = error.map(|cause| format!("{cause}: {} messages were not answered", total.lost));
    client.hang_up();
    Ok(report)
}

const UNASKED: &str = "an answer came that nobody asked for";

struct Run {
    check: StreamCheck,
    times: RttHistogram,
    /// When the messages in flight were sent, by sequence number modulo the window.
    sent_at: Vec<Instant>,
    answered: u64,
    count: u64,
    size: usize,
}

impl Run {
    /// All round trips, then the other side's count.
    fn converse(&mut self, client: &mut Client) -> Result<Tally, String> {
        let window = self.sent_at.len() as u64;
        client.links[0].outbox.iter_mut().for_each(|outbox| outbox.set_limit(0));
        while self.answered < self.count {
            self.ask(client)?;
            let sent = client.links[0].outbox.as_ref().map_or(0, |outbox| outbox.sent());
            let mut strange = None;
            client.turn(STALL_DEADLINE, |message| {
                if message.len() != self.size {
                    strange = Some(self.check.count_mutilated(message.len()));
                    return;
                }
                if self.answered == sent {
                    strange = Some(UNASKED.into());
                    return;
                }
                self.check.observe(message);
                self.times.record(self.sent_at[(self.answered % window) as usize].elapsed());
                self.answered += 1;
            })?;
            if let Some(why) = strange.or_else(|| (!client.controls.is_empty()).then(|| UNASKED.into())) {
                return Err(why);
            }
        }
        client.links[0].say(Control::Done { sent: self.count }.encode(self.size));
        client.pump_all()?;
        loop {
            client.turn(STALL_DEADLINE, |_| {})?;
            match client.controls.pop() {
                Some((_, Some(Control::Tally(tally)))) => return Ok(tally),
                Some(_) => return Err("the other side answered out of turn".into()),
                None => client.pump()?,
            }
        }
    }

    /// Keeps as many messages in flight as the window allows.
    fn ask(&mut self, client: &mut Client) -> Result<(), String> {
        let window = self.sent_at.len() as u64;
        let end = self.count.min(self.answered + window);
        let link = &mut client.links[0];
        loop {
            link.pump()?;
            let Some(outbox) = link.outbox.as_mut().filter(|outbox| outbox.is_finished()) else { return Ok(()) };
            let next = outbox.sent();
            if next == end || !link.sends.room() {
                return Ok(());
            }
            self.sent_at[(next % window) as usize] = Instant::now();
            outbox.set_limit(next + 1);
        }
    }
}

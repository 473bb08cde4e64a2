//! What a scenario can bring forth: who sends, how many messages are measured, which latencies get samples.

use super::{PhaseKind, Scenario, Transport};
use crate::loadgen::behavior::Spec;
use crate::protocol::limits::FANOUT_ON_WRITE_MEMBERS_MAX;
use crate::telemetry::LatencyPath;

impl Scenario {
    /// Behaviours that have a weight.
    pub(super) fn specs(&self) -> impl Iterator<Item = &'static Spec> + '_ {
        self.behaviors.iter().filter(|(_, weight)| **weight > 0).map(|(behavior, _)| behavior.spec())
    }

    pub(super) fn has_direct(&self) -> bool {
        self.population.direct_per_user > 0
    }

    pub(super) fn has_groups(&self) -> bool {
        self.population.groups.iter().any(|groups| groups.count > 0)
    }

    /// Behaviours that send and have a conversation to send in.
    pub(in crate::loadgen) fn talkers(&self) -> impl Iterator<Item = &'static Spec> + '_ {
        let (has_direct, has_groups) = (self.has_direct(), self.has_groups());
        self.specs().filter(move |spec| spec.talks.has_place(has_direct, has_groups))
    }

    /// Messages of all measured phases, as expected.
    pub(super) fn measured_messages(&self) -> f64 {
        let measured = self.phases.iter().filter(|phase| phase.phase != PhaseKind::WarmUp);
        let of = |rate: f64, rate_to: Option<f64>| f64::midpoint(rate, rate_to.unwrap_or(rate));
        measured.map(|phase| of(phase.rate, phase.rate_to) * phase.duration.as_secs_f64()).sum()
    }

    /// Why a latency path gets no sample at all; `None` where it may.
    pub(super) fn missing_for(&self, path: LatencyPath) -> Option<&'static str> {
        let population = &self.population;
        let channel_members = FANOUT_ON_WRITE_MEMBERS_MAX as u32;
        let groups = || population.groups.iter().filter(|groups| groups.count > 0);
        let (is_missing, why) = match path {
            LatencyPath::Answer if self.transport == Transport::Poll => {
                (true, "transport poll fetches answers now and then")
            }
            LatencyPath::Ack | LatencyPath::Answer | LatencyPath::Delivery => {
                (self.measured_messages() <= 0.0, "no measured phase has a rate")
            }
            LatencyPath::DeliverySameServer | LatencyPath::DeliveryOtherServer => {
                (!self.has_direct(), "population.direct_per_user is 0")
            }
            LatencyPath::DeliveryGroup => (
                !groups().any(|groups| groups.members.min <= channel_members),
                "there is no group of up to 100 members",
            ),
            LatencyPath::DeliveryChannel => (
                !groups().any(|groups| groups.members.max > channel_members),
                "there is no group of more than 100 members",
            ),
            LatencyPath::DeliverySlowReader => {
                (!self.specs().any(|spec| spec.reading.is_slow()), "nobody is a slow-reader")
            }
            LatencyPath::PresenceOnline | LatencyPath::PresenceOffline => {
                (population.friends_per_user == 0, "population.friends_per_user is 0")
            }
            LatencyPath::Connect
            | LatencyPath::Login
            | LatencyPath::SendLag
            | LatencyPath::TimerLag
            | LatencyPath::CallWait
            | LatencyPath::CallLag
            | LatencyPath::FetchLag
            | LatencyPath::AckService
            | LatencyPath::DeliveryService
            | LatencyPath::DeliveryAfterReconnect
            | LatencyPath::Sync
            | LatencyPath::Recovery => return None,
        };
        is_missing.then_some(why)
    }

    /// Most samples that a latency path can be expected to get; `None` where there is no telling.
    pub(super) fn samples_max(&self, path: LatencyPath) -> Option<f64> {
        let expected = self.measured_messages();
        // Four standard deviations of a Poisson process above its mean.
        let messages = expected + 4.0 * expected.sqrt();
        let devices = f64::from(self.population.devices_per_user.max);
        let members = self.population.groups.iter().map(|groups| groups.members.max).max().unwrap_or(0).max(2);
        if path == LatencyPath::Ack {
            return Some(messages);
        }
        path.is_delivery().then(|| messages * f64::from(members) * devices)
    }
}

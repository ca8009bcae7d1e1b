//! How a guard reacts to what it measures of the routers.

use molora_kernels::random::{Seed, unit};
use molora_models::{Adaptable, Adapter, ParameterKind};
use molora_parts::{Axis, Origins, PartTensor, fill};

use super::setup::Setup;
use super::trainer::State;
use super::watch::Found;
use crate::recipe::{GuardAction, GuardRule, Phase, Watched};
use crate::report::{GuardAct, GuardDone, GuardRecord, SCHEMA_VERSION};

/// Bound of what is added to the copied rows of a router, as a share of the rows' root mean square: else the
/// copy and the busiest expert would be chosen alike for ever.
const APART: f64 = 0.1;

impl State {
    /// Follows the guard's rules after a step; what was done.
    pub(super) fn guard(
        &mut self,
        setup: &Setup<'_>,
        phase: &Phase,
        found: &[Found],
    ) -> Vec<GuardRecord> {
        let mut records = Vec::new();
        for rule in &setup.recipe.guard.rules {
            let breaks =
                |found: &&Found| found.watch == rule.watch && rule.is_broken_by(found.value);
            let broken: Vec<&Found> = found.iter().filter(breaks).collect();
            if rule.action == GuardAction::RestartDead {
                for dead in broken {
                    let done = self.restart(setup, dead, found);
                    records.push(self.record(setup, phase, rule, dead, done));
                }
                continue;
            }
            let Some(worst) = worst(rule, &broken) else {
                continue;
            };
            let done = match rule.action {
                GuardAction::Stop => GuardDone::Stopped,
                GuardAction::RaiseBalance { factor, most } => self.raise_balance(factor, most),
                GuardAction::Warn | GuardAction::RestartDead => GuardDone::Warned,
            };
            records.push(self.record(setup, phase, rule, worst, done));
        }
        records
    }

    fn record(
        &self,
        setup: &Setup<'_>,
        phase: &Phase,
        rule: &GuardRule,
        found: &Found,
        done: GuardDone,
    ) -> GuardRecord {
        let names = self.model.backbone.route_names();
        GuardRecord {
            version: SCHEMA_VERSION,
            step: self.progress.step,
            stage: setup.stages[phase.stage].name.clone(),
            guard: GuardAct {
                watch: rule.watch.name().into(),
                site: found.site.map(|site| names[site].clone()),
                expert: found.expert,
                value: found.value,
                below: rule.below,
                above: rule.above,
                done,
            },
        }
    }

    fn raise_balance(&mut self, factor: f64, most: f64) -> GuardDone {
        let old = self.progress.balance_factor.unwrap_or(1.0);
        let new = (old * factor).min(most);
        self.progress.balance_factor = Some(new);
        match new > old {
            true => GuardDone::BalanceRaised { factor: new },
            false => GuardDone::BalanceAtMost { factor: new },
        }
    }

    /// Puts a copy of the busiest expert of its site in the place of a dead one.
    fn restart(&mut self, setup: &Setup<'_>, dead: &Found, found: &[Found]) -> GuardDone {
        let is_here = |other: &&Found| other.watch == Watched::LoadShare && other.site == dead.site;
        let shares = found.iter().filter(is_here);
        let busiest = shares.max_by(|a, b| a.value.total_cmp(&b.value));
        let busiest = busiest.and_then(|busiest| busiest.expert);
        let (Some(from), Some(to), Some(site)) = (busiest, dead.expert, dead.site) else {
            return GuardDone::Warned;
        };
        // Where new values alone train, an expert that was there stays.
        if self.only.is_some() {
            return GuardDone::Warned;
        }
        let seed = setup.seed.child("guard").index(self.progress.step as u64);
        let seed = seed.index(site as u64).index(to as u64);
        let mut sites = self.model.backbone.sites_mut();
        let adapter = sites.iter_mut().find(|(_, adapter)| adapter.site() == site);
        match adapter {
            Some((_, adapter)) if from != to => {
                copy_expert(adapter, from, to, seed);
                GuardDone::ExpertRestarted { from }
            }
            _ => GuardDone::Warned,
        }
    }
}

/// The value that breaks a rule most.
fn worst<'a>(rule: &GuardRule, broken: &[&'a Found]) -> Option<&'a Found> {
    let order = |a: &&&Found, b: &&&Found| a.value.total_cmp(&b.value);
    let found = broken.iter();
    match rule.below {
        Some(_) => found.min_by(order).copied(),
        None => found.max_by(order).copied(),
    }
}

/// Replaces an expert of a site, and its parameters in the router, by a copy of another that its router
/// can distinguish.
fn copy_expert(adapter: &mut Adapter, from: usize, to: usize, seed: Seed) {
    let mut origins = vec![None; adapter.bank.num_experts()];
    origins[to] = Some(from);
    let mut other = adapter.clone();
    let mut copied = other.tensors();
    let of_router = |tensor: &&mut PartTensor<'_>| tensor.kind() == ParameterKind::Routers;
    for tensor in copied.iter_mut().filter(of_router) {
        let seed = seed.child(tensor.name());
        set_apart(tensor, seed);
    }
    // A tensor without experts in it would be taken over as a whole.
    let mut own = adapter.tensors();
    own.retain(|tensor| {
        tensor
            .counts()
            .iter()
            .any(|count| count.axis == Axis::Expert)
    });
    fill(
        own,
        &copied,
        &Origins::default().with(Axis::Expert, origins),
    );
}

/// Adds draws from U(-1, 1), times a share of the size of the values.
fn set_apart(tensor: &mut PartTensor<'_>, seed: Seed) {
    let mut values = tensor.values();
    let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
    let spread = APART * (squares / values.len() as f64).sqrt();
    let mut generator = seed.generator();
    for value in &mut values {
        *value += (spread * (2.0 * unit(&mut generator) - 1.0)) as f32;
    }
    tensor.set(&values);
}

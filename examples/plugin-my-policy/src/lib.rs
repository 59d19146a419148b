//! Keeps requests near: prefers backends with certain labels, and takes others only where none of them has room.

use std::collections::BTreeMap;

use serde::Deserialize;
use vision_proxy_sdk::{
    Backend, Candidate, Candidates, Column, Decision, Fleet, Policy, Request, Setup, export_policy,
};

/// In the configuration: `[plugins.settings.my-policy]` with `prefer = { zone = "a" }`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    prefer: BTreeMap<String, String>,
}

/// More than any load: 1,000 is a backend whose every slot is taken.
const FAR: u64 = 10_000;

/// The policy and what it has worked out for the fleet of the moment.
pub struct MyPolicy {
    prefer: BTreeMap<String, String>,
    is_far: Vec<bool>,
}

impl Policy for MyPolicy {
    const COLUMNS: &'static [Column] = &[Column::LoadPermille];

    fn configure(setup: &Setup) -> Result<Self, String> {
        let Settings { prefer } = setup.settings()?;
        Ok(Self { prefer, is_far: Vec::new() })
    }

    fn update(&mut self, fleet: &Fleet) {
        let is_near = |backend: &Backend| self.prefer.iter().all(|(key, value)| backend.label(key) == Some(value));
        self.is_far = fleet.backends.iter().map(|backend| !is_near(backend)).collect();
    }

    fn pick(&mut self, request: &Request, candidates: &Candidates<Self>) -> Decision {
        let cost = |candidate: &Candidate<Self>| {
            let load = candidate.get(Column::LoadPermille);
            if self.is_far[candidate.backend()] { FAR + u64::from(load) } else { u64::from(load) }
        };
        candidates.least(request.random, cost).into()
    }
}

export_policy!(MyPolicy);

#[cfg(test)]
mod tests {
    use super::*;
    use vision_proxy_sdk::Rows;

    fn picked(rows: Rows<MyPolicy>) -> Decision {
        let near = Backend::new("near").with_label("zone", "a");
        let fleet = Fleet::builder().backend(Backend::new("far")).backend(near).build();
        let mut policy = MyPolicy::configure(&Setup::example(r#"{"prefer":{"zone":"a"}}"#)).unwrap();
        policy.update(&fleet);
        policy.pick(&Request::example(), &rows.candidates())
    }

    #[test]
    fn the_near_backend_is_taken_while_it_has_room() {
        let rows = Rows::new().row(0, &[(Column::LoadPermille, 0)]).row(1, &[(Column::LoadPermille, 900)]);
        assert_eq!(picked(rows), Decision::Pick(1));
    }

    #[test]
    fn a_far_backend_is_better_than_none() {
        assert_eq!(picked(Rows::new().row(0, &[])), Decision::Pick(0));
    }
}

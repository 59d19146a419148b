//! Changes of the plugins: files that come and go, rules that waited for one, calls that failed, versions given up.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::Reload;
use crate::config::{self, Config};
use crate::control::build::NotStarted;
use crate::edge::FaultReport;
use crate::plugin::{Change, Kind, Source, Version, What};

impl Reload {
    /// What the rules that are wanted set to work has been compiled, or refused: they come into force, or are refused too (false).
    async fn plugins_ready(&mut self, rules: config::Plugins) -> bool {
        let old = self.shared.snapshot.load_full();
        let config = Config { plugins: rules.clone(), ..Config::clone(&old.config) };
        self.plugins.store().want(None);
        let changes = self.plugins.with(move |plugins| plugins.scan(&rules)).await.unwrap_or_default();
        self.count_refused(&changes);
        let swapped = self.swap(Arc::new(config), old.fleet.clone()).await;
        match &swapped {
            Ok(()) => tracing::info!("[plugins] of the configuration reloaded"),
            Err(mistakes) => {
                tracing::error!(
                    "[plugins] of the configuration refused, the old one stays, with all else of the new: {mistakes}"
                );
                let in_force = old.config.plugins.clone();
                self.plugins.with(move |plugins| plugins.scan(&in_force)).await;
            }
        }
        // Another text may have been refused meanwhile: then that is what there is to say.
        if self.status.is_config_waiting() {
            match &swapped {
                Ok(()) => self.status.config_loaded(),
                Err(mistakes) => self.status.config_refused(mistakes),
            }
        }
        swapped.is_ok()
    }

    pub(super) fn count_refused(&self, changes: &[Change]) {
        for change in changes {
            if let What::Refused(refusal) = &change.what {
                self.status.plugin_refused(&change.name, refusal);
            }
        }
    }

    /// Looks at the plugin folder; what is new and active is swapped in.
    pub async fn plugins_changed(&mut self) {
        let config = Arc::clone(&self.shared.snapshot.load().config);
        let rules = Arc::clone(&config);
        let Some(changes) = self.plugins.with(move |plugins| plugins.scan(&rules.plugins)).await else { return };
        self.count_refused(&changes);
        let wanted = self.plugins.store().wanted().cloned();
        if let Some(rules) = wanted.filter(|rules| self.plugins.is_compiled(rules))
            && self.plugins_ready(rules).await
        {
            return self.publish();
        }
        let is_active = |name: &str| config.plugins.is_active(name);
        if changes.iter().any(|change| is_active(&change.name) && matches!(change.what, What::Loaded(_) | What::Gone)) {
            self.swap_plugins().await;
        }
        self.publish();
    }

    /// Swaps in what the store now says.
    async fn swap_plugins(&mut self) {
        let snapshot = self.shared.snapshot.load_full();
        if let Err(mistakes) = self.swap(Arc::clone(&snapshot.config), snapshot.fleet.clone()).await {
            tracing::error!("no other plugin could be swapped in, what ran runs on: {mistakes}");
        }
    }

    /// A plugin call failed on a worker: its instance is built anew, or the version before comes back.
    pub async fn fault(&mut self, report: FaultReport) {
        let FaultReport { snapshot, worker, kind, fault } = report;
        let version = match kind {
            Kind::Policy => Arc::clone(snapshot.policy.version()),
            Kind::Translator => Arc::clone(snapshot.translator.version()),
        };
        self.status.plugin_fault(&version.name, fault.reason());
        tracing::warn!(plugin = %version.name, reason = fault.reason(), "plugin call failed, the host answered: {fault}");
        let strikes = self.strikes.entry((version.name.clone(), version.sha256.clone())).or_default();
        if strikes.strike(Instant::now()) {
            return self.roll_back(&version, &fault.to_string()).await;
        }
        let rebuilt = spawn_blocking(move || match kind {
            Kind::Policy => snapshot.policy.rebuild(worker),
            Kind::Translator => snapshot.translator.rebuild(worker),
        });
        if let Ok(Err(refusal)) = rebuilt.await {
            self.roll_back(&version, &refusal.to_string()).await;
        }
    }

    async fn roll_back(&mut self, version: &Arc<Version>, why: &str) {
        tracing::error!(plugin = %version.name, sha256 = version.sha256, "rolled back after repeated faults: {why}");
        self.status.events.plugin(&version.name, "rolled back", why);
        let (version, why) = (Arc::clone(version), why.to_owned());
        self.plugins.with(move |plugins| plugins.roll_back(&version, &why)).await;
        self.swap_plugins().await;
        self.publish();
    }

    /// Refuses a file that cannot be started. False for a built-in: there is nothing before it to go back to.
    pub(super) async fn refuse(&self, NotStarted { version, refusal }: NotStarted) -> bool {
        tracing::error!(plugin = %version.name, "refused: {refusal}");
        self.status.plugin_refused(&version.name, &refusal);
        self.plugins.with(move |plugins| plugins.refuse(&version, refusal)).await == Some(true)
    }

    /// Rolls back what has run well until now, but cannot be started again. False for a built-in one.
    pub(super) async fn give_up(&self, NotStarted { version, refusal }: NotStarted) -> bool {
        if version.source == Source::BuiltIn {
            return false;
        }
        let why = format!("it cannot be started again: {refusal}");
        tracing::error!(plugin = %version.name, sha256 = version.sha256, "rolled back: {why}");
        self.status.plugin_refused(&version.name, &refusal);
        self.status.events.plugin(&version.name, "rolled back", &why);
        self.plugins.with(move |plugins| plugins.roll_back(&version, &why)).await;
        true
    }
}

//! What one worker thread keeps for itself: its connections to backends, what it looked up in the present
//! snapshot, and its series of metrics. Nothing here is shared, so nothing is locked.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;

use super::decisions::{Decisions, World};
use super::route::Dialect;
use super::snapshot::{Demand, FaultReport, Member, Shared, Snapshot};
use super::upstream::Pool;
use crate::config::Engine;
use crate::fleet::engine::ServedModel;
use crate::fleet::{Backend, Seat, UNKNOWN};
use crate::metrics::Series;
use crate::plugin::{Fault, Kind, Route};

/// Names resolved and kept, those that nobody serves included; past this the table starts anew.
const RESOLVED_LIMIT: usize = 4096;
/// `request.model` of a name that is not in the catalog (`wit/vision-proxy.wit`).
const UNLISTED: u32 = u32::MAX;

/// The state of one worker.
#[derive(Debug)]
pub struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub pool: Rc<Pool>,
    current: RefCell<Rc<Current>>,
    /// For what came to no backend.
    pub unplaced: Arc<Series>,
    pub decisions: Arc<Decisions>,
    /// The process ends: answers under way are cut.
    pub cut: Rc<Cell<bool>>,
}

/// Public names that were resolved, each as it was asked for; `None`: nobody serves it.
type Resolved = HashMap<Box<str>, Vec<(Manner, Option<Rc<Served>>)>>;
/// In which dialect, and whether with images.
type Manner = (Dialect, bool);

/// A snapshot as one worker uses it. It lasts as long as a request needs it.
#[derive(Debug)]
pub struct Current {
    pub snapshot: Arc<Snapshot>,
    resolved: RefCell<Resolved>,
    /// For the record of decisions.
    pub world: Arc<World>,
    /// Rows of the pick under way, kept for their memory.
    pub rows: RefCell<Vec<u32>>,
    /// Those it is among, likewise.
    pub open: RefCell<Vec<usize>>,
}

impl Current {
    fn new(snapshot: Arc<Snapshot>) -> Rc<Self> {
        let world = World {
            generation: snapshot.generation,
            policy: snapshot.policy.version().name.clone(),
            columns: snapshot.policy.columns().to_vec(),
            names: snapshot.fleet.iter().map(|member| Arc::clone(&member.backend.name)).collect(),
        };
        Rc::new(Self {
            snapshot,
            resolved: RefCell::default(),
            world: Arc::new(world),
            rows: RefCell::default(),
            open: RefCell::default(),
        })
    }
}

/// A public model name, resolved: who serves it and as what.
#[derive(Debug)]
pub struct Served {
    pub public: Arc<str>,
    /// The public name as JSON, to be put into answers.
    pub public_json: Bytes,
    /// Index into the catalog.
    pub model: u32,
    /// Shared by all workers.
    pub demand: Arc<Demand>,
    /// In the order of tiers, and in each in the order of the fleet.
    pub candidates: Box<[Candidate]>,
    /// Where each of them is found.
    pub places: Box<[Place]>,
    /// At least one.
    pub tiers: Box<[Tier]>,
    /// All candidates' backends.
    pub all: Arc<[Arc<Backend>]>,
    /// For requests that come to no backend.
    pub series: Arc<Series>,
}

/// The candidates of a tier and of all before it.
#[derive(Debug)]
pub struct Tier {
    /// How many of the candidates, from the first on.
    pub candidates: usize,
    /// Their backends, for the queue.
    pub backends: Arc<[Arc<Backend>]>,
}

/// What a pick reads of every candidate, side by side for fleets of thousands.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// On the board.
    pub seat: Seat,
    /// As plugins know it: its index in the snapshot's fleet.
    pub member: u32,
}

impl Place {
    fn of((backend, candidate): (&Arc<Backend>, &Candidate)) -> Self {
        Self { seat: backend.seat, member: u32::try_from(candidate.member).unwrap_or(u32::MAX) }
    }
}

/// A backend that serves a model.
#[derive(Debug)]
pub struct Candidate {
    /// Index into the snapshot's fleet.
    pub member: usize,
    /// The column `loaded`: 1, 0, or unknown.
    pub loaded: u32,
    /// The native name as JSON, to be spliced into requests.
    pub native_json: Bytes,
    /// The native name as it is, for multipart bodies and the answer's header.
    pub native: Bytes,
    pub native_header: Option<HeaderValue>,
    pub backend_header: Option<HeaderValue>,
    pub series: Arc<Series>,
}

impl Worker {
    pub fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let unplaced = shared.metrics.series(index, "", "");
        let current = RefCell::new(Current::new(shared.snapshot.load_full()));
        let decisions = shared.decisions.get(index).map(Arc::clone).unwrap_or_default();
        let pool = Rc::new(Pool::new(Arc::clone(&shared.names)));
        Rc::new(Self { index, shared, pool, current, unplaced, decisions, cut: Rc::default() })
    }

    /// The newest snapshot. Costs no shared write: the count that a request holds is this worker's own.
    pub fn current(&self) -> Rc<Current> {
        let newest = self.shared.snapshot.load();
        let mut current = self.current.borrow_mut();
        if !Arc::ptr_eq(&newest, &current.snapshot) {
            *current = Current::new(Arc::clone(&newest));
        }
        Rc::clone(&current)
    }

    /// Who serves a model to those who speak this dialect, and show it images or not; `None`: nobody.
    pub fn served(&self, current: &Current, model: &str, dialect: Dialect, with_images: bool) -> Option<Rc<Served>> {
        let manner = (dialect, with_images);
        if let Some(known) = current.resolved.borrow().get(model)
            && let Some((_, served)) = known.iter().find(|(of, _)| *of == manner)
        {
            return served.clone();
        }
        let (mut routes, is_sure) = self.routes(&current.snapshot, model);
        prefer_native_speakers(&current.snapshot, dialect, &mut routes);
        if with_images {
            prefer_those_who_see(&current.snapshot, &mut routes);
        }
        let served = self.resolve(&current.snapshot, model, routes).map(Rc::new);
        let mut resolved = current.resolved.borrow_mut();
        if resolved.len() >= RESOLVED_LIMIT {
            resolved.clear();
        }
        if is_sure {
            resolved.entry(model.into()).or_default().push((manner, served.clone()));
        }
        served
    }

    /// Asks the translator where the catalog does not know. Where it fails the host's own rule answers, and the answer
    /// is not one to be kept.
    fn routes(&self, snapshot: &Arc<Snapshot>, model: &str) -> (Vec<Route>, bool) {
        if let Some(routes) = snapshot.routes.get(model) {
            return (routes.clone(), true);
        }
        match snapshot.translator.resolve(self.index, model) {
            Ok(routes) => (routes, true),
            Err(fault) => {
                self.report(snapshot, Kind::Translator, fault);
                (own_routes(snapshot, model), false)
            }
        }
    }

    fn resolve(&self, snapshot: &Snapshot, model: &str, mut routes: Vec<Route>) -> Option<Served> {
        let tier = |member: usize| snapshot.fleet.get(member).map_or(0, |member| member.config.tier);
        // In the order of the fleet, so that strict turns are the same whoever translates.
        routes.sort_unstable_by_key(|route| (tier(route.backend as usize), route.backend));
        let candidates: Box<[Candidate]> =
            routes.iter().filter_map(|route| self.candidate(snapshot, model, route)).collect();
        if candidates.is_empty() {
            return None;
        }
        let mut tiers = Vec::new();
        for same in candidates.chunk_by(|one, other| tier(one.member) == tier(other.member)) {
            let count = tiers.last().map_or(0, |tier: &Tier| tier.candidates) + same.len();
            let so_far = candidates.iter().take(count);
            let backends =
                so_far.filter_map(|candidate| Some(Arc::clone(&snapshot.fleet.get(candidate.member)?.backend)));
            tiers.push(Tier { candidates: count, backends: backends.collect() });
        }
        let all = tiers.last().map_or_else(|| Arc::from([]), |tier: &Tier| Arc::clone(&tier.backends));
        let public: Arc<str> = model.into();
        let at = snapshot.catalog.iter().position(|listed| listed.as_ref() == model);
        Some(Served {
            model: at.and_then(|at| u32::try_from(at).ok()).unwrap_or(UNLISTED),
            demand: self.shared.demand(&public),
            places: all.iter().zip(&candidates).map(Place::of).collect(),
            all,
            tiers: tiers.into(),
            series: self.shared.metrics.series(self.index, model, ""),
            candidates,
            public_json: json_string(model),
            public,
        })
    }

    fn candidate(&self, snapshot: &Snapshot, model: &str, route: &Route) -> Option<Candidate> {
        let member = route.backend as usize;
        let backend = &snapshot.fleet.get(member)?.backend;
        let loaded = known_of(snapshot, route, |model| model.loaded);
        Some(Candidate {
            member,
            loaded: loaded.map_or(UNKNOWN, u32::from),
            native_json: json_string(&route.native),
            native_header: HeaderValue::from_str(&route.native).ok(),
            backend_header: HeaderValue::from_str(&backend.name).ok(),
            series: self.shared.metrics.series(self.index, model, &backend.name),
            native: route.native.clone().into(),
        })
    }

    /// Tells control of a failed plugin call. Where the instance is being rebuilt, it knows.
    pub fn report(&self, snapshot: &Arc<Snapshot>, kind: Kind, fault: Fault) {
        if !matches!(fault, Fault::Away) {
            let report = FaultReport { snapshot: Arc::clone(snapshot), worker: self.index, kind, fault };
            // Control ends after the workers; there is nobody else to tell.
            let _ = self.shared.faults.send(report);
        }
    }
}

/// A name as a JSON string.
pub fn json_string(name: &str) -> Bytes {
    serde_json::Value::from(name).to_string().into()
}

fn own_routes(snapshot: &Snapshot, model: &str) -> Vec<Route> {
    let wanted = snapshot.config.models.get(model).map(Vec::as_slice).unwrap_or_default();
    let native = |member: &Member| {
        let models = Arc::clone(&member.backend.known().models);
        let lists = |name: &str| models.iter().any(|served| served.native == name);
        let names = wanted.iter().map(String::as_str).chain([model]);
        let listed = || names.into_iter().find(|name| lists(name)).map(str::to_owned);
        member.config.models.get(model).cloned().or_else(listed)
    };
    let route = |(index, member)| Some(Route { backend: u32::try_from(index).ok()?, native: native(member)? });
    snapshot.fleet.iter().enumerate().filter_map(route).collect()
}

/// What a backend says of the model that a route leads to.
fn known_of(snapshot: &Snapshot, route: &Route, ask: fn(&ServedModel) -> Option<bool>) -> Option<bool> {
    let member = snapshot.fleet.get(route.backend as usize)?;
    let models = Arc::clone(&member.backend.known().models);
    models.iter().find(|model| model.native == route.native).and_then(ask)
}

/// Images are for models that see: where a backend does not say that its model is blind, others are not shown any.
fn prefer_those_who_see(snapshot: &Snapshot, routes: &mut Vec<Route>) {
    let may_see = |route: &Route| known_of(snapshot, route, |model| model.vision) != Some(false);
    if routes.iter().any(may_see) {
        routes.retain(may_see);
    }
}

/// Ollama's own API is spoken by Ollama: where one serves the model, others are not asked in it.
fn prefer_native_speakers(snapshot: &Snapshot, dialect: Dialect, routes: &mut Vec<Route>) {
    if dialect != Dialect::Ollama {
        return;
    }
    let speaks = |route: &Route| {
        let member = snapshot.fleet.get(route.backend as usize);
        member.is_some_and(|member| member.backend.known().engine == Some(Engine::Ollama))
    };
    if routes.iter().any(speaks) {
        routes.retain(speaks);
    }
}

//! What lies in an app's folder besides its slot: releases that nobody needs any more, and the way to the files.

use std::collections::BTreeSet;

use proto::digest::Digest;

use super::{App, StepError};
use crate::{
    apps::{current, live, plan::Wanted},
    driver::Side,
    fetch::tree,
};

impl App {
    /// Has `current` lead to a release.
    pub(super) async fn link(&mut self, digest: Option<Digest>) -> Result<(), StepError> {
        let folder = self.folder.clone();
        self.shared.env.blocking.run(move || current::link(&folder, digest)).await.map_err(StepError::Link)?;
        self.linked = digest;
        Ok(())
    }

    /// Tells workload and clients which instance is live.
    pub(super) async fn make_live(&mut self, side: Side) -> Result<(), StepError> {
        let folder = self.folder.clone();
        self.shared.env.blocking.run(move || live::link(&folder, side)).await.map_err(StepError::Live)?;
        tracing::info!(app = %self.name, side = side.letter(), "live");
        self.live = Some(side);
        Ok(())
    }

    /// Nothing of the app runs any more.
    pub(super) async fn make_none_live(&mut self) -> Result<(), StepError> {
        let folder = self.folder.clone();
        self.shared.env.blocking.run(move || live::remove(&folder)).await.map_err(StepError::Live)?;
        self.live = None;
        Ok(())
    }

    /// Removes releases that nobody needs any more.
    pub(super) async fn sweep(&mut self, wanted: &Wanted) -> Result<(), StepError> {
        if !std::mem::take(&mut self.litter) {
            return Ok(());
        }
        if let Err(error) = self.give_gpus_back().await {
            self.litter = true;
            return Err(error);
        }
        let mut keep: BTreeSet<Digest> = self.slot.kept().collect();
        keep.extend(self.held_by_others());
        keep.extend(wanted.release().map(|r| r.digest).filter(|digest| self.slot.failure(*digest).is_none()));
        let (releases, kept) = (self.folder.join("releases"), keep.clone());
        let collected = self.shared.env.blocking.run(move || tree::collect(&releases, &kept)).await;
        self.litter |= collected.is_err(); // the next turn tries again
        collected.map_err(StepError::Collect)?;
        let collected = self.shared.driver.collect(&self.name, &keep).await;
        self.litter |= collected.is_err();
        Ok(collected?)
    }
}

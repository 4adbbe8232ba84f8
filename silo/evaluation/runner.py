"""Runs settings on pictures, one prior at a time, and keeps the record of what comes out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from tqdm import tqdm

from operators.catalog import find_operator
from operators.latent import architectures, load_operator
from operators.pretrained import CONFIG_NAME
from silo import __version__
from silo.data import PhotoFile
from silo.devices import describe_device, pick_device, pick_dtype
from silo.errors import BadImage
from silo.evaluation.jobs import Autoencoding, Job, OperatorAccuracy, Restoration, Store, job_key
from silo.evaluation.protocols import Setting
from silo.evaluation.record import Record, Row
from silo.fingerprint import weights_fingerprints
from silo.prior import LatentPrior
from silo.restorer import Restorer
from silo.samplers import SAMPLERS


class Runner:
    """What an evaluation runs on.

    Attributes:
        store: its pictures.
        record: its rows.
        study: as in `Protocol`.
        device: where it computes.
        dtype: what the networks run in.
    """

    def __init__(
        self,
        store: Store,
        record: Record,
        study: str | None,
        device: str,
        dtype: str,
        *,
        show_progress: bool,
    ) -> None:
        """Compute on `device`, of which each of a machine's processes takes its own with "auto".

        Raises:
            BadRequest: there is no such device here, or it does not compute in `dtype`.
        """
        self.store, self.record, self.study = store, record, study
        if device == "auto" and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        self.device = pick_device(device)
        self.dtype = pick_dtype(self.device, dtype)
        self._show_progress = show_progress
        self._prior: LatentPrior | None = None
        self._restorers: dict[str | None, Restorer] = {}

    def run(self, settings: Sequence[Setting], photos: Sequence[PhotoFile]) -> None:
        """Measure what the record does not hold yet, each picture in all settings of a prior.

        A picture that cannot be read is a failure in each of them.
        """
        load = lru_cache(maxsize=1)(PhotoFile.load)
        priors = dict.fromkeys(setting.prior for setting in settings)
        progress = tqdm(unit="picture", smoothing=0, disable=not self._show_progress, total=0)
        progress.total = len({job_key(setting, self.study) for setting in settings}) * len(photos)
        with progress:
            for prior in priors:
                jobs = self._jobs([each for each in settings if each.prior == prior])
                pending = [(p, job) for p in photos for job in jobs if not self._holds(job, p)]
                progress.total -= len(jobs) * len(photos) - len(pending)
                progress.refresh()
                for photo, job in pending:
                    try:
                        found = job.run(photo, load(photo), self.record)
                    except BadImage as error:
                        found = {"error": str(error)}
                    made = {**_identity(job, photo), "device": describe_device(self.device)}
                    self.record.add(job.key, photo, {**made, **found})
                    progress.update()

    def is_done(self, settings: Sequence[Setting], photos: Sequence[PhotoFile]) -> bool:
        """Whether every picture has a row for every setting, be it one of a failure.

        Rows that differ in what made them are in part an earlier run's, which another process is
        about to replace.
        """
        keys = {job_key(setting, self.study) for setting in settings}
        return all(self._is_whole(self.record.rows(key, photos), len(photos)) for key in keys)

    def prior(self, name: str) -> LatentPrior:
        """The prior of this name; the one before is forgotten."""
        if self._prior is None or self._prior.name != name:
            self._restorers.clear()
            self._prior = LatentPrior.load(name, device=self.device, dtype=self.dtype)
        return self._prior

    def restorer(self, setting: Setting) -> Restorer:
        """What restores in this setting; shared by the settings with the same operator."""
        prior, operator = self.prior(setting.prior), None
        if setting.operator is not None and SAMPLERS[setting.sampler].needs_operator:
            operator = place_operator(setting, prior)
        if operator not in self._restorers:
            self._restorers[operator] = Restorer(prior, operator=operator)
        return self._restorers[operator]

    def _jobs(self, settings: Sequence[Setting]) -> list[Job]:
        jobs: dict[str, Job] = {}
        for setting in settings:
            prior = self.prior(setting.prior)
            if self.study == "autoencoder":
                job: Job = Autoencoding(prior, self.store, self._weights(setting, prior))
            elif self.study == "operator-accuracy":
                operator = load_operator(place_operator(setting, prior))
                operator.requires_grad_(False).to(prior.device)
                job = OperatorAccuracy(setting, prior, operator, self._weights(setting, prior))
            else:
                weights = self._weights(setting, prior)
                job = Restoration(setting, self.restorer(setting), self.store, weights)
            jobs.setdefault(job.key, job)
        return list(jobs.values())

    def _weights(self, setting: Setting, prior: LatentPrior) -> dict[str, str | None]:
        """The fingerprints of prior and operator, as far as no revision names them."""
        operator = None
        if SAMPLERS[setting.sampler].needs_operator and self.study != "autoencoder":
            operator = place_operator(setting, prior)
        return weights_fingerprints(prior, operator)

    def _is_whole(self, rows: Sequence[Row], count: int) -> bool:
        made_by = [[row.get(name) for name in ("version", "weights", "measures")] for row in rows]
        current = [row.get("version") == __version__ for row in rows]
        return len(rows) == count and all(current) and all(each == made_by[0] for each in made_by)

    def _holds(self, job: Job, photo: PhotoFile) -> bool:
        """Whether there is a row, and no failure's, that would come out the same again."""
        row = self.record.get(job.key, photo)
        if row is None or "error" in row or not job.is_kept(photo):
            return False
        identity = json.loads(json.dumps(_identity(job, photo)))
        return {name: row.get(name) for name in identity} == identity


def _identity(job: Job, photo: PhotoFile) -> Row:
    """What a row has to agree in with the one that would be written now."""
    return {**job.identity(photo), "version": __version__}


def place_operator(setting: Setting, prior: LatentPrior) -> str:
    """The folder or Hub id of the setting's operator.

    Its `operator` is an architecture, for which the shelf is searched; or a folder with operators
    in folders named after their tasks, as `train-operator` writes them; or the operator itself.
    """
    named = setting.operator
    if named is None or named in architectures():
        channels = prior.latent_channels
        return str(find_operator(setting.task, prior.name, channels, architecture=named))
    own = Path(named) / setting.task
    return str(own) if (own / CONFIG_NAME).is_file() else named

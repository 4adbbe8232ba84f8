"""What an evaluation does with a picture: restore it, autoencode it, test an operator on it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from operators.errors import OperatorError
from operators.files import replacing
from operators.latent import LatentOperator
from silo import __version__
from silo.data import Photo, PhotoFile, center_crop
from silo.devices import dtype_name, generators, peak_memory, reset_peak_memory
from silo.errors import BadImage, CannotSave, SiloError
from silo.evaluation.protocols import TIMESTEPS, Setting
from silo.evaluation.record import Record, Row
from silo.fingerprint import files_fingerprint
from silo.images import read_parameters, save_png
from silo.inception import Inception
from silo.measured import measurement_generator
from silo.metric_weights import FILES, find_metric_weights
from silo.metrics import lpips, psnr, score, ssim
from silo.prior import LatentPrior, Prediction
from silo.request import RestorationRequest
from silo.restorer import Restorer, Result
from silo.samplers.problem import Problem
from silo.schedule import to_clean

CONTENT = "content"  # in the parameters of a kept picture: the fingerprint of what it was made of


class Store:
    """The pictures of an evaluation, and their Inception features where there is the network."""

    def __init__(self, folder: Path, inception: Inception | None) -> None:
        """Keep everything below `folder`."""
        self.folder = folder
        self._inception = inception

    @property
    def measures(self) -> dict[str, str]:
        """The SHA-256 of the weights that metrics need and have."""
        found = {name: find_metric_weights(name) for name in FILES}
        if self._inception is None:
            del found["inception"]
        return {name: files_fingerprint([path]) for name, path in found.items() if path}

    def picture(self, key: str, name: str, sample: int = 0) -> Path:
        """Where a picture lies."""
        suffix = f".{sample + 1}" if sample else ""
        return self.folder / "pictures" / key / f"{_file_name(name)}{suffix}.png"

    def features(self, key: str, name: str) -> Path:
        """Where the Inception features (N, 2048) of a picture's N samples lie."""
        return self.folder / "features" / key / f"{_file_name(name)}.safetensors"

    def save(
        self,
        key: str,
        photo: PhotoFile,
        images: Tensor,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what was made of `photo`, images (N, 3, H, W), and their features."""
        # A picture that is there says that its features are, too.
        self.picture(key, photo.name).unlink(missing_ok=True)
        if self._inception is not None:
            path = self.features(key, photo.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as aside:
                save_file({"features": self._inception.features(images)}, aside)
        for index, image in enumerate(images):
            path = self.picture(key, photo.name, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(path, image, {**(parameters or {}), CONTENT: photo.fingerprint})

    def holds(self, key: str, photo: PhotoFile) -> bool:
        """Whether a picture made of `photo` is there, with its features if there is the network."""
        path = self.picture(key, photo.name)
        if self._inception is not None and not self.features(key, photo.name).is_file():
            return False
        try:
            parameters = read_parameters(path) if path.is_file() else None
            return parameters is not None and parameters.get(CONTENT) == photo.fingerprint
        except BadImage:  # the picture is damaged, and made again, or the photo cannot be read
            return False


class Job(ABC):
    """Something to measure on every picture; `key` names it in the record."""

    key: str

    def __init__(self, weights: Mapping[str, str | None]) -> None:
        """Keep `weights`: SHA-256 of the prior's and the operator's, None where a revision is."""
        self._weights = dict(weights)

    @abstractmethod
    def identity(self, photo: PhotoFile) -> Row:
        """All that the row of a picture depends on but for the picture, JSON-able."""

    def is_kept(self, photo: PhotoFile) -> bool:
        """Whether the files that the row of a picture belongs to are there."""
        return True

    @abstractmethod
    def run(self, photo: PhotoFile, loaded: Photo, record: Record) -> Row:
        """Measure on a picture; returns the further entries of its row."""


class Restoration(Job):
    """Restores pictures in one setting, and scores the restorations and their measurements."""

    def __init__(
        self,
        setting: Setting,
        restorer: Restorer,
        store: Store,
        weights: Mapping[str, str | None],
    ) -> None:
        """Restore with `restorer`, whose prior and operator are the setting's.

        Args:
            setting: how to restore.
            restorer: what restores.
            store: where the pictures go.
            weights: as in `Job`.
        """
        super().__init__(weights)
        self.key = setting.key
        self._setting, self._restorer, self._store = setting, restorer, store
        self._size = restorer.prior.native_size

    def identity(self, photo: PhotoFile) -> Row:
        """All that decides the restoration, and the metrics that there are weights for."""
        return {
            "parameters": self._restorer.parameters(blank_request(self._setting, photo)),
            "weights": self._weights,
            "measures": self._store.measures,
            "size": self._size,
        }

    def run(self, photo: PhotoFile, loaded: Photo, record: Record) -> Row:
        """Restore; an error that concerns this restoration becomes its row.

        Raises:
            CannotSave: there is no room for what comes out, nor for that of the other pictures.
        """
        try:
            return self._restore(photo, loaded, record)
        except CannotSave:
            raise
        except (SiloError, OperatorError) as error:
            return {"error": str(error)}

    def _restore(self, photo: PhotoFile, loaded: Photo, record: Record) -> Row:
        device = self._restorer.prior.device
        bounded = reset_peak_memory(device)
        image = center_crop(loaded, self._size)[None]
        result = self._restorer.run(_request(self._setting, photo.caption, image))
        memory = peak_memory(device) if bounded else None
        self._keep_source(photo, result, record)
        self._store.save(self.key, photo, result.images, result.parameters)
        return {
            "scores": {
                **asdict(score(result.measured, result.restored)),
                "diversity": _diversity(result.images),
            },
            "seconds": round(result.seconds, 3),
            "nfe": result.nfe,
            "encodes": result.encodes,
            "decodes": result.decodes,
            "peak_memory": memory,
            "notices": result.notices,
        }

    def is_kept(self, photo: PhotoFile) -> bool:
        """Whether restoration, measurement and clean picture are there."""
        keys = (self.key, measurement_key(self._setting, self._size), clean_key(self._size))
        return all(self._store.holds(key, photo) for key in keys)

    def _keep_source(self, photo: PhotoFile, result: Result, record: Record) -> None:
        """Keep the clean picture and the scored measurement, unless another setting has."""
        clean = result.clean
        assert clean is not None, "an evaluation simulates the damage"
        if not self._store.holds(clean_key(self._size), photo):
            self._store.save(clean_key(self._size), photo, clean)
        key = measurement_key(self._setting, self._size)
        row = record.get(key, photo) or {}
        identity = {"measures": self._store.measures, "version": __version__}
        same = {name: row.get(name) for name in identity} == identity
        if not same or not self._store.holds(key, photo):
            self._store.save(key, photo, result.measurement)
            scores = asdict(score(result.measured, result.measured.full_size))
            record.add(key, photo, {**identity, "scores": scores})


class Autoencoding(Job):
    """Scores D(E(x)): what no restoration with this prior can be expected to exceed."""

    def __init__(self, prior: LatentPrior, store: Store, weights: Mapping[str, str | None]) -> None:
        """Encode and decode with `prior`; `weights` as in `Job`."""
        super().__init__(weights)
        self.key = _autoencoding_key(prior.name)
        self._prior, self._store = prior, store

    def identity(self, photo: PhotoFile) -> Row:
        """The prior, and the metrics that there are weights for."""
        prior = {"name": self._prior.name, "revision": self._prior.revision}
        return {
            "parameters": {"prior": prior, "dtype": dtype_name(self._prior.dtype)},
            "weights": self._weights,
            "measures": self._store.measures,
            "size": self._prior.native_size,
        }

    def is_kept(self, photo: PhotoFile) -> bool:
        """Whether both pictures are there."""
        keys = (self.key, clean_key(self._prior.native_size))
        return all(self._store.holds(key, photo) for key in keys)

    @torch.no_grad()
    def run(self, photo: PhotoFile, loaded: Photo, record: Record) -> Row:
        """Encode and decode one picture."""
        size = self._prior.native_size
        clean = center_crop(loaded, size)[None]
        image = self._prior.decode(self._prior.encode(clean.to(self._prior.device))).cpu()
        self._store.save(clean_key(size), photo, clean)
        self._store.save(self.key, photo, image)
        scores = {
            "psnr": float(psnr(image, clean)),
            "cpsnr": None,
            "ssim": float(ssim(image, clean)),
            "lpips": lpips("alex", image, clean),
            "lpips_vgg": lpips("vgg", image, clean),
        }
        return {"scores": scores}


class OperatorAccuracy(Job):
    """L1 distances per latent element to E(A(x)), A without noise, of H_theta and of the identity.

    Both are given E(x), and z0hat_t, which the prior makes of E(x) noised to timestep t. A readout
    operator reads the denoiser's features of the same evaluation; with E(x), those of timestep 0.
    """

    def __init__(
        self,
        setting: Setting,
        prior: LatentPrior,
        operator: LatentOperator,
        weights: Mapping[str, str | None],
    ) -> None:
        """Test `operator`, on the device of `prior`, for the setting's task.

        `weights` are as in `Job`.
        """
        super().__init__(weights)
        self.key = _accuracy_key(setting)
        self._setting, self._prior, self._operator = setting, prior, operator

    def identity(self, photo: PhotoFile) -> Row:
        """The setting: the sampler does not matter here, but the prompt does."""
        prior = {"name": self._prior.name, "revision": self._prior.revision}
        operator = {"name": self._setting.operator, "revision": self._operator.revision}
        parameters = {
            **self._setting.to_dict(),
            "prior": prior,
            "operator": operator,
            "dtype": dtype_name(self._prior.dtype),
        }
        size = self._prior.native_size
        return {"parameters": parameters, "weights": self._weights, "size": size}

    @torch.no_grad()
    def run(self, photo: PhotoFile, loaded: Photo, record: Record) -> Row:
        """Compare with the encoding of one picture's noiseless measurement."""
        prior, setting = self._prior, self._setting
        x = center_crop(loaded, prior.native_size)[None]
        degradation = setting.measured.with_noise(0.0)
        pixels = degradation.operator()
        size = prior.native_size
        mask = pixels.draw_mask(size, size, measurement_generator(setting.seed))
        y = pixels.forward(x, mask)
        target = prior.encode(pixels.to_full_size(y).to(prior.device))
        problem = Problem(
            prior=prior,
            operator=self._operator,
            degradation=degradation,
            measurement=y.to(prior.device),
            measurement_latent=target,
            mask=None if mask is None else mask.to(prior.device),
            noise_sigma=0.0,
            prompt=prior.embed(photo.caption if setting.prompt is None else setting.prompt),
        )
        z = prior.encode(x.to(prior.device))
        scores = _distances(problem, z, problem.predict(z, 0), "E(x)")
        (generator,) = generators(setting.seed, 1)
        for t in TIMESTEPS:
            alpha_bar = float(prior.alphas_cumprod[t])
            noise = torch.randn(z.shape, generator=generator).to(z)
            z_t = alpha_bar**0.5 * z + (1 - alpha_bar) ** 0.5 * noise
            prediction = problem.predict(z_t, t)
            clean = to_clean(z_t, prediction.output, alpha_bar, prior.prediction_type)
            scores |= _distances(problem, clean, prediction, f"z0hat_{t}")
        return {"scores": scores}


def blank_request(setting: Setting, photo: PhotoFile) -> RestorationRequest:
    """The request for a picture, but without its pixels: what asks for nothing but parameters."""
    return _request(setting, photo.caption, torch.zeros(1, 3, 64, 64))


def _request(setting: Setting, caption: str, image: Tensor) -> RestorationRequest:
    return RestorationRequest(
        task=setting.task,
        image=image,
        simulate=True,
        degradation=setting.degradation,
        prompt=caption if setting.prompt is None else setting.prompt,
        guidance_scale=setting.guidance_scale,
        sampler=setting.sampler,
        preset="paper",
        steps=setting.steps,
        eta=setting.eta,
        noise_sigma=setting.noise_sigma,
        keep_known=setting.keep_known,
        clamp=setting.clamp,
        hyperparameters=dict(setting.hyperparameters),
        samples=setting.samples,
        seed=setting.seed,
    )


def _distances(
    problem: Problem, clean: Tensor, prediction: Prediction, name: str
) -> dict[str, float]:
    target = problem.measurement_latent
    return {
        f"H({name})": float(F.l1_loss(problem.predict_measurement(clean, prediction), target)),
        name: float(F.l1_loss(clean, target)),
    }


def job_key(setting: Setting, study: str | None) -> str:
    """The `key` of the job that a setting leads to, for a `Protocol.study`."""
    if study == "autoencoder":
        return _autoencoding_key(setting.prior)
    return _accuracy_key(setting) if study == "operator-accuracy" else setting.key


def clean_key(size: int) -> str:
    """Of the clean pictures at a prior's native size, in pixels."""
    return f"clean-{size}"


def measurement_key(setting: Setting, size: int) -> str:
    """Of the measurements that a setting starts from at a prior's native size."""
    return f"{setting.measurement_key}-{size}"


def _autoencoding_key(prior: str) -> str:
    return f"autoencoder-{hashlib.sha256(prior.encode()).hexdigest()[:10]}"


def _accuracy_key(setting: Setting) -> str:
    return f"accuracy-{setting.key}"


def _diversity(images: Tensor) -> float | None:
    """The standard deviation over samples (N, 3, H, W), of pictures in [0, 1], mean over pixels."""
    return float(images.std(0).mean() / 2) if len(images) > 1 else None


def _file_name(name: str) -> str:
    return name.replace("/", "_").replace("\\", "_")

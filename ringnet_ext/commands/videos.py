"""``ringnet infer`` and ``ringnet fit`` of videos."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import torch

from ..files.images import write_image
from ..files.videos import Video, record, write_video
from ..files.whole import output_folder, written_whole
from ..fitting.pictures import uncertainty
from ..flame import FLAME, FlameModel
from ..flame.parameters import HeadParams
from ..inference.finders import whole
from ..inference.ringnet import RingNet
from ..inference.trust import certainties, described
from ..inference.video import (
    Landmarks,
    at_landmarks,
    detected_landmarks,
    fit_landmarks,
    follow,
    overlays,
    pixels,
    read_video_landmarks,
)
from ..progress import progress
from ..training.processes import Processes
from .faces import finder, finds_landmarks, landmark_detectors
from .options import FAILED, OptionError, report, require_apart

CAMERA, PARAMETERS, OVERLAY = "camera.mp4", "params.npz", "overlay.mp4"


def infer_video(options, model: RingNet, processes: Processes) -> int:
    """``ringnet infer VIDEO``, or of a camera; returns the exit code."""
    if processes.count > 1:
        raise OptionError("IMAGE: a video is one process's work, and torchrun started more")
    if len(options.images) + (options.camera is not None) > 1:
        raise OptionError("IMAGE: expected one video alone, or --camera")
    find = None if options.landmarks is not None or finds_landmarks(options) else finder(model, options)
    sources = [*options.images, *([options.landmarks] if options.landmarks else [])]
    require_apart(options.out, (PARAMETERS, OVERLAY), sources)
    video = Video(options.images[0]) if options.camera is None else None
    output_folder(options.out)
    print(described(model))
    if video is None:
        print(f"recording camera {options.camera}" + ("; Ctrl-C ends it" if options.frames is None else ""), flush=True)
        record(options.out / CAMERA, options.camera, options.frames)
        video = Video(options.out / CAMERA)
    began = time.perf_counter()
    if find is None:
        params, arrays, seen = _fitted_video(options, model, video)
    else:
        heads = follow(model, video, find, every=find is whole)
        params, seen = heads.params, heads.seen
        arrays = {"landmarks": heads.landmarks, "score": heads.score}
    seconds = time.perf_counter() - began
    pose = torch.cat([params.global_pose, params.jaw_pose], dim=1)
    values = {"cam": params.camera, "pose": pose, "shape": params.shape[0], "expression": params.expression}
    arrays = {name: value.cpu().numpy() for name, value in values.items()} | arrays
    arrays |= {"seen": seen, "fps": video.fps, "size": np.array(video.size), "pixel_centres": 0.5}
    with written_whole(options.out / PARAMETERS) as file:
        np.savez(file, **arrays)
    drawn = overlays(video, model.flame, model.head, params, seen)
    began = time.perf_counter()
    write_video(options.out / OVERLAY, progress(drawn, total=len(seen), desc="drawing", unit="frame"), video.fps)
    drawing = time.perf_counter() - began
    print(
        f"{len(seen)} frames reconstructed in {seconds:.2f} s, {len(seen) / seconds:.1f} a second, and drawn in "
        f"{drawing:.2f} s, {len(seen) / drawing:.1f} a second; {int((~seen).sum())} without a face, bridged"
    )
    print(f"{options.out}: {PARAMETERS}, {OVERLAY}")
    lost = video.count - len(seen)
    if lost > max(2, video.count // 50):
        report(
            f"{video.path}: damaged, or trimmed without being encoded anew: it says that it has {video.count} frames, "
            f"and ends after {len(seen)}"
        )
        return FAILED
    return 0


def _fitted_video(options, model: RingNet, video: Video) -> tuple[HeadParams, dict, np.ndarray]:
    landmarks = _landmarks(options, video)
    start = at_landmarks(model, video, landmarks)
    like = model.flame.v_template
    try:
        found = fit_landmarks(
            model.flame, landmarks, video.size, start=HeadParams(*(value.to(like) for value in start)), sigma=None
        )
    except ValueError as error:
        raise ValueError(f"{video.path}: {error}") from None
    arrays = {
        "landmarks": pixels(found.landmarks.cpu().numpy(), video.size),
        "residuals": found.residuals.cpu().numpy() * (max(video.size) / 2),
        "shape_std": found.shape_std[0].cpu().numpy(),
        "score": np.full(len(landmarks[0]), certainties(found, model.flame)[0]),
    }
    return found.params, arrays, np.asarray((landmarks[1] > 0).any(1))


def fit_video(options, flame: FLAME, head: FlameModel, network: RingNet | None) -> int:
    """``ringnet fit VIDEO``; returns the exit code."""
    video = Video(options.images[0])
    sources = [video.path, *([options.landmarks] if options.landmarks else [])]
    require_apart(options.out, (PARAMETERS, OVERLAY), sources)
    output_folder(options.out)
    points, confidence = _landmarks(options, video)
    known = np.asarray((confidence > 0).any(1))
    half = max(video.size) / 2
    start = None
    if network is not None and options.camera == "weak":
        start = HeadParams(
            *(value.to(flame.v_template) for value in at_landmarks(network, video, (points, confidence)))
        )
    began = time.perf_counter()
    bar = progress(total=1, desc="fitting", unit="video")
    try:
        found = fit_landmarks(
            flame,
            (points, confidence),
            video.size,
            smoothness=options.smoothness,
            start=start,
            sigma=options.sigma,
            camera=options.camera,
            focal=None if options.focal is None else options.focal / half,
            robust=options.robust,
        )
    except ValueError as error:
        raise ValueError(f"{video.path}: {error}") from None
    bar.update(1)
    bar.close()
    seconds = time.perf_counter() - began
    print(
        f"{len(points)} frames fitted in {seconds:.2f} s, {len(points) / seconds:.0f} a second; "
        f"{int((~known).sum())} without a face; "
        f"sigma {found.sigma:.4f}"
    )
    p = found.params
    tensors = {
        "cam": p.camera, "pose": torch.cat([p.global_pose, p.jaw_pose], dim=1), "shape": found.shape[0],
        "expression": p.expression, "shape_std": found.shape_std[0],
    }  # fmt: skip
    if found.focal is not None and found.translation is not None:
        tensors |= {"camera_translation": found.translation, "focal": found.focal * half}
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in tensors.items()}
    arrays["landmarks"] = pixels(found.landmarks.cpu().numpy(), video.size)
    arrays["pixel_centres"] = 0.5
    arrays |= {
        "seen": known,
        "residuals": found.residuals.cpu().numpy() * half,
        "fps": video.fps,
        "size": np.array(video.size),
    }
    with written_whole(options.out / PARAMETERS) as file:
        np.savez(file, **arrays)
    neutral = flame(found.shape[:1]).vertices[0].cpu().numpy()
    write_image(
        options.out / "uncertainty.png", uncertainty(neutral, head.faces, 1000 * found.vertex_std()[0].cpu().numpy())
    )
    facts = {
        "frames": len(points),
        "without_a_face": int((~known).sum()),
        "sigma": found.sigma,
        "objective": float(found.objective[0]),
        "iterations": int(found.iterations[0]),
        "stopped": found.stopped[0],
        "frames_a_second": len(points) / seconds,
        "mean_residual_pixels": float(np.nanmean(arrays["residuals"])),
    }
    with written_whole(options.out / "report.json") as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode())
    pinhole = None
    if found.focal is not None and found.translation is not None:
        pinhole = found.focal.cpu().numpy(), found.translation.cpu().numpy()
    drawn = overlays(video, flame, head, found.params, known, pinhole)
    frames = progress(drawn, total=len(points), desc="drawing", unit="frame")
    write_video(options.out / OVERLAY, frames, video.fps)
    print(f"{options.out}: {PARAMETERS}, {OVERLAY}, uncertainty.png, report.json")
    return 0


def _landmarks(options, video: Video) -> Landmarks:
    if options.landmarks is None:
        return detected_landmarks(landmark_detectors(options), video)
    if options.landmarks.is_dir():
        raise OptionError(
            f"--landmarks: {options.landmarks}: expected a .npy or .npz file for a video, and this is a folder"
        )
    return read_video_landmarks(options.landmarks, video)

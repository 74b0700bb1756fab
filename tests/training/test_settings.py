"""The defaults of training, which are said once: in the settings, as the presets have them."""

import dataclasses

import pytest

from ringnet_ext import RingNet
from ringnet_ext.commands import train
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.training.settings import PRESETS, Execution, NetworkSettings, TrainingSettings
from ringnet_ext.training.trainer import Trainer


def options(folder, *arguments):
    read = train._options(["--out", str(folder / "run"), *arguments])
    if read.shares is None:
        read.shares = PRESETS[read.preset].training.shares
    return read


def test_the_compact_preset_is_what_the_settings_are_without_arguments():
    preset = PRESETS["compact"]
    assert preset.training == TrainingSettings() and preset.network == NetworkSettings()
    assert preset.faces == SyntheticFaces()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_the_command_trains_with(name, tmp_path):
    read = options(tmp_path, "--preset", name)
    assert train._training_settings(read) == PRESETS[name].training
    assert train._chosen(PRESETS[name].network, read) == PRESETS[name].network
    assert train._chosen(SyntheticFaces(), read) == PRESETS[name].faces
    assert train._chosen(Execution(), read) == Execution()


def test_every_setting_has_an_option_that_decides_it_and_nothing_else(tmp_path):
    """With any preset."""
    others = {"precision": "bfloat16", "encoder": "resnet50", "leak": 0.5, "dropout": 0.25, "shares": 4}
    for field in (*dataclasses.fields(TrainingSettings), *dataclasses.fields(NetworkSettings)):
        if field.name == "scale":  # belongs to the preset
            continue
        training = field.name in TrainingSettings.__dataclass_fields__
        option = train._OPTIONS.get(field.name, field.name)
        for name, preset in PRESETS.items():
            before = preset.training if training else preset.network
            value = others.get(field.name, 0.75 if field.type.startswith("float") else 64)
            read = options(tmp_path, "--preset", name, f"--{option.replace('_', '-')}", str(value))
            after = train._training_settings(read) if training else train._chosen(before, read)
            assert after == dataclasses.replace(before, **{field.name: value}), field.name


def test_the_help_shows_the_presets_settings():
    shown = {action.dest: action.help for action in train.make_parser()._actions}
    for name, dest in (("learning_rate", "learning_rate"), ("beta2", "beta2"), ("rings_per_step", "rings")):
        values = ", ".join(f"{preset}: {getattr(PRESETS[preset].training, name)}" for preset in PRESETS)
        assert shown[dest].endswith(f"[{values}]")
    assert shown["gradient_clip"].endswith("paper: none]") and shown["margin"].endswith("[0.5]")
    assert shown["keep"].endswith(f"[{Execution().keep}]")


def test_a_weight_for_a_read_out_that_the_model_has_not_is_refused(tmp_path):
    faces = SyntheticFaces(identities=4, images_per_identity=3, size=32).load(cache=tmp_path / "cache")
    settings = TrainingSettings(rings_per_step=2, ring_size=3)
    with pytest.raises(ValueError, match=r"^readout_weight: 60.0, .*readout=True"):
        Trainer(RingNet(), faces, faces, settings, tmp_path / "run")
    Trainer(RingNet(readout=True), faces, faces, settings, tmp_path / "run")
    Trainer(RingNet(), faces, faces, dataclasses.replace(settings, readout_weight=0.0), tmp_path / "run")

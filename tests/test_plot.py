"""The pictures: the values that are drawn, and pictures that come out whole from whatever a log holds."""
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
from matplotlib import font_manager, image

from tools import cli, plot
from tools.pictures import style
from tools.errors import UserError
from tools.plot import curve, draw_logs, draw_plt, smoothed, thinned, tracks_of
from tools.train_log import TrainLog, read_log

ROOT = Path(__file__).resolve().parents[1]


def make_log(folder, losses, stage="sft", name="log.txt", evaluate=True):
    log = TrainLog(folder / name, folder / "logs", stage, {"device": "cpu", "params": 1234})
    for step, loss in enumerate(losses, 1):
        log.line(
            {"epoch": 1, "epochs": 1, "batch": step, "batches": 9, "index": 1, "indexes": 1, "step": 10 * step,
             "loss": loss,
                  "ppx_1": math.exp(min(loss, 80)), "ppx_2": 2.0 * step, "lexp": 0.1, "grad_norm": 1.0,
                  "lr": 5e-4 / step, "tok_s": 900.0})
    if evaluate:
        log.event("eval", eval_loss=1.5, eval_name="text")
    return folder / name


def ink(path):
    """Share of the picture's pixels that are not white."""
    return float((image.imread(path)[..., :3].min(2) < 0.9).mean())


def test_M2_values_of_the_curves(tmp_path):
    losses = [4.0, 3.0, 2.5, 2.25]
    run, = read_log(make_log(tmp_path, losses))
    for name, expected in (("loss", losses), ("ppx_1", np.exp(losses)), ("ppx_2", [2, 4, 6, 8]),
                           ("lr", 5e-4 / np.arange(1, 5))):
        x, raw, smooth = curve(run, name, smooth=0)
        assert x.tolist() == [10, 20, 30, 40]
        np.testing.assert_allclose(raw, expected, rtol=1e-4)
        np.testing.assert_allclose(smooth, expected, rtol=1e-4)


def test_M2_smoothing_is_a_bias_corrected_average():
    np.testing.assert_allclose(smoothed(np.full(50, 7.0), 0.9), 7.0)        # not pulled to 0 at the start
    y = np.array([1.0, 5.0, 2.0])
    np.testing.assert_allclose(smoothed(y, 0.5), [1, (0.5 * 1 + 5) / 1.5, (0.25 * 1 + 0.5 * 5 + 2) / 1.75])


def test_M2_perplexity_is_smoothed_as_cross_entropy(tmp_path):
    run, = read_log(make_log(tmp_path, [1.0, 3.0]))
    np.testing.assert_allclose(curve(run, "ppx_1", 0.5)[2][1], math.exp((0.5 * 1 + 3) / 1.5), rtol=1e-4)
    np.testing.assert_allclose(curve(run, "lr", 0.5)[2], [5e-4, 2.5e-4], rtol=1e-4)


def test_M2_nan_is_a_gap_and_moves_nothing(tmp_path):
    clean = read_log(make_log(tmp_path, [4.0, 3.0, 2.0], name="a.txt"))[0]
    for bad in (math.nan, math.inf, -math.inf):
        run = read_log(make_log(tmp_path, [4.0, 3.0, bad, 2.0], name=f"b{bad}.txt"))[0]
        x, raw, smooth = curve(run, "loss", 0.9)
        np.testing.assert_array_equal(raw, [4, 3, np.nan, 2])
        assert x.tolist() == [10, 20, 30, 40]
        np.testing.assert_allclose(smooth[[0, 1, 3]], curve(clean, "loss", 0.9)[2])
        assert smooth[2] == smooth[1]
    assert np.isnan(smoothed(np.array([np.nan, 1.0]), 0.9)).tolist() == [True, False]


def test_M2_half_written_line_changes_no_point(tmp_path):
    path = make_log(tmp_path, [4.0, 3.0, 2.0])
    before = curve(read_log(path)[0], "loss")
    with open(path, "a", encoding="utf-8") as f:
        f.write("Epoch 001/1 | Batch 0004/0009 | Index 0001/0001 | Loss: 9")
    for a, b in zip(before, curve(read_log(path)[0], "loss")):
        np.testing.assert_array_equal(a, b)


def test_M2_thinning_keeps_the_outline_and_the_spike():
    x, y = np.arange(100_000.0), np.random.default_rng(0).normal(size=100_000)
    y[54_321], y[10:20] = 99.0, np.nan
    tx, ty = thinned(x, y)
    assert len(tx) < 4000 and (np.diff(tx) >= 0).all()
    assert np.nanmax(ty) == 99.0 and np.nanmin(ty) == np.nanmin(y) and tx[np.nanargmax(ty)] == 54_321
    assert thinned(x[:10], y[:10])[0] is not None and len(thinned(x[:10], y[:10])[0]) == 10


def test_M2_runs_of_one_log_follow_one_another_and_logs_lie_over_one_another(tmp_path):
    a = make_log(tmp_path, [3.0, 2.0], "pre", "a.txt")
    make_log(tmp_path, [1.0, 0.5, 0.4], "sft", "a.txt")
    b = make_log(tmp_path, [5.0], "pre", "b.txt")
    tracks = tracks_of([("a.txt", read_log(a)), ("b.txt", read_log(b))])
    assert [track.start for track in tracks] == [0, 20, 0]
    assert len({track.color for track in tracks}) == len({track.label for track in tracks}) == 3
    assert curve(tracks[1].run, "loss", start=tracks[1].start)[0].tolist() == [30, 40, 50]


@pytest.mark.filterwarnings("error")
def test_M2_draw_plt_writes_its_pictures(tmp_path):
    make_log(tmp_path, [9.0] * 4, "pre")
    paths = draw_plt("SFT", make_log(tmp_path, np.linspace(4, 1, 60)), tmp_path / "png")
    assert [Path(p).name for p in paths] == [f"SFT_{n}.png" for n in ("loss", "ppx_1", "ppx_2", "lr", "curves")]
    assert all(ink(p) > 0.005 for p in paths)
    assert not list((tmp_path / "png").glob(".*"))


def test_M2_draw_plt_takes_the_newest_run_of_that_stage(tmp_path, monkeypatch):
    for stage, losses in (("sft", [9.0]), ("sft", [4.0, 3.0]), ("pre", [8.0] * 5)):
        path = make_log(tmp_path, losses, stage)
    drawn = []
    monkeypatch.setattr(plot, "_overview", lambda page, tracks, title: drawn.append(tracks))
    monkeypatch.setattr(plot, "_single", lambda page, tracks, name: None)
    monkeypatch.setattr(plot, "save", lambda figure, path: str(path))
    assert Path(draw_plt("SFT", path)[0]).parent.name == "logs"
    draw_plt("everything", path)
    assert [[len(track.run) for track in tracks] for tracks in drawn] == [[2], [1, 2, 5]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "losses", [[3.0], [math.nan] * 3, [1e300, 1.0, 2.0], [0.0, 0.0], [math.inf, 1.0], [-1.0, 2.0, 900.0]])
def test_M2_odd_logs_are_drawn_without_a_complaint(tmp_path, losses):
    path = make_log(tmp_path, losses, evaluate=False)
    with open(path, "a", encoding="utf-8") as f:
        f.write("# eval | step: 10 | eval_loss: nan\n")
    assert ink(draw_logs([path], tmp_path / "x.png")) > 0.005


@pytest.mark.parametrize("chinese", [True, False])
def test_M2_no_box_and_no_warning_with_or_without_a_chinese_font(tmp_path, monkeypatch, chinese):
    if chinese and not style.chinese_font():
        pytest.skip("no font with Chinese glyphs on this machine")
    if not chinese:
        dejavu = [entry for entry in font_manager.fontManager.ttflist if entry.name.startswith("DejaVu")]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", dejavu)
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda *a, **k: [])
    assert style.Page().chinese is chinese
    paths = [make_log(tmp_path, [3.0, 2.0], name=name) for name in ("训练 $日志$ 😀.txt", "b.txt")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ink(draw_logs(paths, tmp_path / "x.png")) > 0.005


def test_M2_jsonl_is_drawn_too_and_global_state_is_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    make_log(tmp_path, [3.0, 2.0])
    out = draw_logs(list((tmp_path / "logs").glob("*.jsonl")))
    assert out.endswith("_curves.png") and ink(out) > 0.005
    assert dict(matplotlib.rcParams) == before


def test_M2_missing_empty_and_unwritable_are_the_users_errors(tmp_path, capsys):
    (tmp_path / "empty.txt").touch()
    good = str(make_log(tmp_path, [1.0]))
    for arguments in (["none.txt"], [str(tmp_path / "empty.txt")], [], [good, "--smooth", "1.5"], [good, "--nope"],
                      [good, "--output", str(tmp_path / "x.what")],
                      [good, "--output", str(tmp_path / "empty.txt" / "x.png")]):
        assert cli._run(lambda: plot.main(arguments)) == 2
        message = capsys.readouterr().err
        assert any("\u4e00" <= c <= "\u9fff" for c in message) and len(message.strip().splitlines()) <= 2
    with pytest.raises(UserError):
        draw_plt("sft", tmp_path / "empty.txt")
    assert not list(tmp_path.glob(".*tmp*"))


def test_scales_do_not_depend_on_the_run(tmp_path):
    """A loss is always linear, a perplexity always logarithmic, whatever their span; and every axis has numbers on
    it."""
    from matplotlib.figure import Figure
    for losses in ([4.0, 3.9, 3.8], [9.0, 1.0, 0.001]):
        tracks = tracks_of([("a.txt", read_log(make_log(tmp_path, losses, name=f"{losses[-1]}.txt")))])
        for name, scale in (("loss", "linear"), ("ppx_1", "log"), ("ppx_2", "log"), ("grad_norm", "log"),
                            ("lr", "linear")):
            ax = Figure().add_subplot()
            plot._panel(ax, style.Page(), name, tracks)
            low, high = ax.get_ylim()
            assert ax.get_yscale() == scale and sum(low <= tick <= high for tick in ax.get_yticks()) >= 2, (name,
                losses)


def test_logs_of_one_name_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(plot, "_overview", lambda page, tracks, title: labels.extend(track.label for track in tracks))
    monkeypatch.setattr(plot, "save", lambda figure, path: str(path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    draw_logs([make_log(tmp_path / name, [3.0]) for name in ("a", "b")])
    assert labels == [os.path.join("a", "log.txt"), os.path.join("b", "log.txt")]


def test_whoever_reads_chinese_finds_no_key_in_the_legends(tmp_path, monkeypatch):
    monkeypatch.setattr(style.Page, "text", lambda page, label: str(label))           # fonts are not the question
    monkeypatch.setattr(style, "chinese_font", lambda: "DejaVu Sans")
    texts = []
    monkeypatch.setattr(plot, "save", lambda figure, path: texts.extend(
        one.get_text() for one in figure.findobj(matplotlib.text.Text)))
    log = TrainLog(tmp_path / "log.txt", None, "lora", {"device": "cpu", "params": 12, "precision": "no", "ranks": 1})
    for step in (1, 2):
        log.line({"step": step, "loss": 3.0 / step, "lr": 0.1})
        for name in ("held", "general"):
            log.event("eval", step=step, eval_loss=1.5, eval_name=name)
    draw_plt("Lora", tmp_path / "log.txt")
    draw_logs([tmp_path / "log.txt", make_log(tmp_path, [3.0], name="b.txt")])
    said = " ".join(texts)
    assert {"留出数据", "通用数据", "训练", "LoRA 微调 · 训练曲线", "精度", "进程数"} <= set(texts), said
    assert not any(word in said for word in ("held", "general", "Lora", "params", "precision", "ranks", "eval"))


def test_long_names_keep_both_ends(tmp_path):
    names = [f"logs_of_a_very_long_experiment_name_number_{k}.txt" for k in (1, 2)]
    tracks = tracks_of([(name, read_log(make_log(tmp_path, [3.0], name=name))) for name in names])
    shown = [plot.short_label(track.label) for track in tracks]
    assert len(set(shown)) == 2 and all(len(one) <= 40 and one.startswith("logs_of") for one in shown)


def test_M2_script_runs_from_any_folder(tmp_path):
    path = make_log(tmp_path, [3.0, 2.0, 1.0])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "plot.py"), path.name, "--output", "sub/图.png", "--smooth", "0.5"],
        cwd=tmp_path,
                          capture_output=True, encoding="utf-8",
                          env={**os.environ, "PYTHONIOENCODING": "utf-8", "MPLBACKEND": "tkagg"})
    assert done.returncode == 0, done.stderr
    assert "图.png" in done.stdout and ink(tmp_path / "sub" / "图.png") > 0.005


def test_a_training_ends_with_its_curves_drawn(options, capsys):
    """In log_dir; of a run with a name in its own folder; nothing where nothing is logged."""
    from train_agent.trainers.pre_training import pre_train
    for keys, place in (({}, "log_dir"), ({"name": "实验 一"}, "out_dir"), ({"logging_steps": None, "name": "哑"}, None)):
        chosen = options(max_steps=2, **{"logging_steps": 1, **keys})
        pre_train(chosen)
        pictures = {name: Path(chosen[name], chosen["name"] or "") / "pre_curves.png"
                    for name in ("log_dir", "out_dir")}
        assert [name for name, picture in pictures.items() if picture.is_file()] == ([place] if place else [])
        said = capsys.readouterr().err
        assert str(pictures[place]) in said if place else "曲线：" not in said

"""Small files in the official layouts: sounds, pictures and videos made on the spot."""

import pathlib
import wave

import av
import numpy as np
from PIL import Image

from fedcmi_jax.data.crisismmd import CLASSES as INFORMATIVE
from fedcmi_jax.data.crisismmd import COLUMNS
from fedcmi_jax.data.modelnet40 import CLASSES as MODELS

FPS = 10
STEP = 20  # gray levels from one second of a video to the next


def tone(seconds, rate=16_000, frequency=440.0):
    """[n] float in [-0.5, 0.5]."""
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def write_wav(path, samples, rate=16_000):
    """16-bit PCM; samples [n] or [n, channels] in [-1, 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(samples * 2**15).astype("<i2").tobytes())


def write_image(path, color=(10, 20, 30), size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def write_video(path, seconds, *, codec, sound=True, frequency=440.0):
    """A video whose frames of second s have the gray level STEP * s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=FPS)
        video.width, video.height, video.pix_fmt = 32, 16, "yuv420p"
        video.options = {"qscale": "1"}
        audio = container.add_stream("aac", rate=16_000) if sound else None
        for i in range(int(seconds * FPS)):
            pixels = np.full((16, 32, 3), STEP * (i // FPS), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            samples = tone(seconds, frequency=frequency).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            frame.sample_rate = 16_000
            container.mux(audio.encode(frame))
            container.mux(audio.encode())


def write_cremad(root: pathlib.Path, *, images=False):
    """Two training clips and one test clip of each emotion."""
    for split, actors in (("train", (1001, 1003)), ("test", (1002,))):
        rows = []
        for actor in actors:
            for emotion in ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"):
                clip = f"{actor}_IOM_{emotion}_XX"
                rows.append(f"{clip},{emotion}\r\n")
                write_wav(root / "AudioWAV" / f"{clip}.wav", tone(2.2))
                if images:
                    for i in range(3):
                        path = root / "Image-01-FPS" / clip / f"{i + 1:05}.jpg"
                        write_image(path, (STEP * i,) * 3)
                else:
                    path = root / "VideoFlash" / f"{clip}.flv"
                    write_video(path, 2.2, codec="flv", sound=False)
        (root / f"{split}.csv").write_text("".join(rows))


AVE_TRAIN = (
    "Church bell&a&good&0&10",
    "Bark&b&good&1&4",
    "Bark&c&good&2&2",  # an empty event
    "Bark&d&good&0&2",  # its video is in the test split too
)
AVE_TEST = ("Church bell&d&good&0&3", "Bark&e&good&0&3")


def write_ave(root: pathlib.Path):
    for name, rows in (("trainSet", AVE_TRAIN), ("testSet", AVE_TEST)):
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows))
    for video in "abde":
        write_video(root / "AVE" / f"{video}.mp4", 10, codec="mpeg4")


TWEETS = (
    # Event, text, image, label.
    ("hurricane_irma", "RT @a: We\u00e2\u20ac\u2122re #safe https://t.co/x", 0, 1),
    ("hurricane_irma", "lost", 1, 0),
    ("mexico_earthquake", "Fuerza M\u00c3\u00a9xico!", 2, 1),
)


def write_crisismmd(root: pathlib.Path):
    folder = root / "crisismmd_datasplit_all"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        lines = ["\t".join(COLUMNS)]
        for event, text, number, label in TWEETS:
            image = f"data_image/{event}/{split}_{number}.png"
            name = INFORMATIVE[label]
            lines.append(
                "\t".join(
                    (event, "1", f"1_{number}", text, image, name, name, name, "x")
                )
            )
            write_image(root / image, (number * 100, 0, 0), size=(20, 6))
        path = folder / f"task_informative_text_img_{split}.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_modelnet40(root: pathlib.Path, views=(1, 7)):
    for label, name in enumerate(MODELS):
        for split in ("train", "test"):
            for view in views:
                write_image(
                    root / name / split / f"{name}_1.obj.shaded_v{view:03}.png",
                    (label, view, 0),
                    size=(4, 4),
                )


def modelnet40_list(root: pathlib.Path, split: str) -> str:
    """The list file of what write_modelnet40 wrote."""
    return "".join(
        f"../{root.name}/{name}/{split}/{name}_1.obj.shaded_v001.png\t{label}\n"
        for label, name in enumerate(MODELS)
    )

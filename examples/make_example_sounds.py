"""
Make the example sounds: seven everyday sounds and one long scene of all of them, synthesised from scratch.

    python examples/make_example_sounds.py

writes examples/audio/*.flac: mono, 16 bits, 16000 Hz, and a metadata.csv with the seven sounds' labels. Nothing is
recorded, so nothing needs a licence, and everything random is seeded, so a second run writes the same files.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile as sf

SAMPLING_RATE = 16000  # Hz


def seconds(duration_s):
    """The times of the samples of `duration_s` seconds, in seconds."""
    return np.arange(round(duration_s * SAMPLING_RATE)) / SAMPLING_RATE


def noise(rng, duration_s, low_hz, high_hz):
    """Noise between two frequencies, with gentle edges."""
    size = len(seconds(duration_s))
    frequency = np.fft.rfftfreq(size, 1 / SAMPLING_RATE) + 1e-3  # Hz; never 0, for the division
    gain = 1 / np.sqrt((1 + (low_hz / frequency) ** 4) * (1 + (frequency / high_hz) ** 4))
    return np.fft.irfft(np.fft.rfft(rng.normal(size=size)) * gain, size)


def partials(rows, duration_s):
    """Sum of decaying sines, from rows of (frequency in Hz, amplitude, decay time in seconds)."""
    t = seconds(duration_s)
    return sum(amplitude * np.sin(2 * np.pi * hz * t) * np.exp(-t / decay_s) for hz, amplitude, decay_s in rows)


def place(sound, start_s, into):
    """Add a sound to a longer one, from `start_s` on; what would stick out is cut off."""
    start = round(start_s * SAMPLING_RATE)
    into[start : start + len(sound)] += sound[: len(into) - start]


def room(rng, dry, reverb_s, wet):
    """Put a sound in a room: its echoes are noise that dies away by 60 dB in `reverb_s` seconds."""
    t = seconds(reverb_s)
    echoes = rng.normal(size=len(t)) * 10 ** (-3 * t / reverb_s)
    echoes *= wet / np.sqrt((echoes**2).sum())
    size = len(dry) + len(t)
    return dry + np.fft.irfft(np.fft.rfft(dry, size) * np.fft.rfft(echoes, size), size)[: len(dry)]


def siren(rng):
    """A tone rich in harmonics whose pitch rises and falls between 500 and 1500 Hz every 4 s, in a street."""
    pitch = 1000 - 500 * np.cos(2 * np.pi * seconds(5) / 4)  # Hz
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    return room(rng, sum(np.sin(k * phase) / k for k in range(1, 6)), reverb_s=2, wet=0.5)


def dial_tone(rng):
    """The North American dial tone: 350 Hz and 440 Hz together."""
    t = seconds(4)
    return np.sin(2 * np.pi * 350 * t) + np.sin(2 * np.pi * 440 * t)


def ticking_clock(rng):
    """Four clicks a second, tick and tock in turn; each is three taps of an escapement on a small metal body."""
    clock = np.zeros(len(seconds(5)))
    tick, tock = (
        partials([(rng.uniform(low, high), rng.normal(), rng.uniform(0.005, 0.017)) for _ in range(24)], 0.06)
        for low, high in ((1500, 5000), (1300, 4300))
    )
    for beat in range(19):
        first, second = (tick, tock) if beat % 2 == 0 else (tock, tick)
        for delay_s, sound in ((0, first), (0.020, 0.5 * second), (0.033, 0.3 * first)):
            place(sound, 0.1 + beat / 4 + delay_s, into=clock)
    clock = room(rng, clock, reverb_s=0.2, wet=0.2)
    return clock / np.abs(clock).max() + 0.01 * noise(rng, 5, 50, 3000)  # no real room is silent


def rain(rng):
    """Steady hiss from afar, and 500 drops a second close by: short bursts of noise at random times."""
    drops, t = np.zeros(len(seconds(5))), seconds(0.02)
    for start_s in rng.uniform(0, 4.97, size=2500):
        hz, loudness = rng.uniform(1500, 6000), min(rng.exponential(), 3)
        place(loudness * noise(rng, 0.02, 0.7 * hz, 1.4 * hz) * np.exp(-500 * t), start_s, into=drops)
    return noise(rng, 5, 300, 5000) + drops


def church_bell(rng):
    """Four strokes; the partials of a bell (hum, prime, third, fifth, octave, ...); the high ones die first."""
    bell = [(0.5, 0.5, 4.0), (1, 0.7, 2.5), (1.19, 0.9, 1.8), (1.5, 0.5, 1.4), (2, 1.0, 1.2), (2.51, 0.5, 0.8)]
    bell += [(2.66, 0.5, 0.7), (3.01, 0.6, 0.5), (4.17, 0.5, 0.35), (5.43, 0.4, 0.25), (6.8, 0.3, 0.2)]
    strokes = np.zeros(len(seconds(6)))
    for start_s in (0.1, 1.3, 2.5, 3.7):
        for detune in (1, 1.0025):  # a bell is never quite round: every partial is two, which beat
            rows = [(500 * ratio * detune, amplitude, decay_s) for ratio, amplitude, decay_s in bell]
            place(partials(rows, 6), start_s, into=strokes)
    return room(rng, strokes, reverb_s=3, wet=0.4)


def helicopter(rng):
    """Rotor blades chop low noise 17 times a second, with a hum at 4 times that and some hiss of the turbine."""
    t = seconds(5)
    chop = np.exp(-2 * (17 * t % 1))
    hum = 0.5 * np.sin(2 * np.pi * 4 * 17 * t) * chop
    return 1.5 * (0.1 + chop) * noise(rng, 5, 50, 600) + hum + 0.2 * (0.5 + 0.5 * chop) * noise(rng, 5, 400, 3000)


def bird_singing(rng):
    """A row of short whistles between 3 and 6 kHz, each one gliding up or down with a fast trill."""
    song = np.zeros(len(seconds(5)))
    for note in range(12):
        duration_s = rng.uniform(0.06, 0.14)
        t = seconds(duration_s)
        start_hz, end_hz = rng.uniform(2800, 4200), rng.uniform(3500, 6500)
        pitch = start_hz + (end_hz - start_hz) * t / duration_s + 250 * np.sin(2 * np.pi * 30 * t)  # Hz
        whistle = np.sin(np.pi * t / duration_s) * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE)
        place(whistle, 0.2 + 0.37 * note + rng.uniform(0, 0.08), into=song)
    return room(rng, song, reverb_s=0.8, wet=0.25) + 0.003 * rng.normal(size=len(song))


# In the order of the long scene. The number is the peak, of at most 1: a clock is quiet.
SOUNDS = {bird_singing: 0.3, church_bell: 0.5, ticking_clock: 0.1, rain: 0.3}
SOUNDS |= {siren: 0.5, helicopter: 0.5, dial_tone: 0.3}


def finish(sound, peak):
    """Scale to the peak, and fade in and out within 10 ms, so that no edge clicks."""
    edge = np.linspace(0, 1, len(seconds(0.01)))
    sound = peak * sound / np.abs(sound).max()
    sound[: len(edge)] *= edge
    sound[-len(edge) :] *= edge[::-1]
    return sound


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Synthesise the example sounds.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "audio", help="folder to write to")
    output = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)

    files, scene = {}, []
    for synthesise, peak in SOUNDS.items():
        sound = synthesise(np.random.default_rng(0))  # its own generator: no sound depends on the others
        files[synthesise.__name__] = finish(sound, peak)
        scene += [finish(sound[: len(seconds(3.5))], peak), np.zeros(len(seconds(0.5)))]
    files["long_scene"] = np.concatenate(scene)

    for name, sound in files.items():
        path = output / f"{name}.flac"
        sf.write(path, np.round(sound * 32767).astype(np.int16), SAMPLING_RATE)
        print(f"{path}: {len(sound) / SAMPLING_RATE:.1f} s, {path.stat().st_size / 1000:.0f} kB")
    rows = [f"{synthesise.__name__}.flac,{synthesise.__name__}" for synthesise in SOUNDS]
    (output / "metadata.csv").write_text("\n".join(["file_name,label", *rows, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()

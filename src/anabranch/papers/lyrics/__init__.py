"""Song lyrics from audio with Whisper: what separating the vocals first is worth, and how to cut the song."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="lyrics",
    title="Exploiting Music Source Separation for Automatic Lyrics Transcription with Whisper",
    authors=("Jaza Syed", "Ivan Meresman Higgs", "Ondřej Cífka", "Mark Sandler"),
    published=date(2025, 6, 18),
    arxiv="2506.15514",
    repository="jaza-syed/mss-alt",
    summary=(
        "Whisper writes down sung words without training, but the accompaniment misleads it, and over a whole song it "
        "loops, skips lines and invents text in the instrumental parts. The paper measures what separating the vocals "
        "is worth and gives two recipes: join neighbouring lines to groups of up to half a minute, and cut a song where "
        "the separated vocals are quiet. For lyric databases, karaoke, subtitles and music research."
    ),
    package="audio",
    extra="audio",
    claims=(
        Claim(
            name="grouping-lines",
            says="Joining lines to groups lowers the word error rate on the original mix.",
            published="29.40 to 22.25 % (Jam-ALT), 28.53 to 24.67 % (MUSDB-ALT)",
            where="the authors' results notebook, short form",
            read_in="code",
            published_setting="Whisper large-v2, beam 5, sum over 5 seeds; single merged lines",
        ),
        Claim(
            name="separation-short-form",
            says="With a good separator the groups get better still.",
            published="22.25 to 19.12 % (Jam-ALT), 24.67 to 21.36 % (MUSDB-ALT)",
            where="the authors' results notebook, short form",
            read_in="code",
            published_setting="Whisper large-v2, Demucs mdx_extra; original mix",
        ),
        Claim(
            name="weak-separator-is-useless",
            says="A weak separator is no better than none.",
            published="22.85 % separated, 22.25 % mix (Jam-ALT)",
            where="the authors' results notebook, short form, groups",
            read_in="code",
            published_setting="Whisper large-v2, Demucs mdx; original mix",
        ),
        Claim(
            name="grouping-fails-on-stems",
            says="On true vocal stems grouping does not help.",
            published="14.96 to 16.32 % (MUSDB-ALT)",
            where="the authors' results notebook, short form",
            read_in="code",
            published_setting="Whisper large-v2 on vocal stems; single merged lines",
        ),
        Claim(
            name="cutting-at-quiet-moments",
            says="Cutting the song by the loudness of the vocals beats Whisper's own way through it on separated audio.",
            published="22.94 to 19.72 % (Jam-ALT), 22.11 to 19.41 % (MUSDB-ALT)",
            where="the authors' results notebook, long form",
            read_in="code",
            published_setting="Whisper large-v2, separated vocals; Whisper's native long-form algorithm",
        ),
        Claim(
            name="cutting-helps-the-mix",
            says="The cuts help even when the unseparated mix is transcribed.",
            published="22.36 to 20.23 % (Jam-ALT), 25.83 to 22.38 % (MUSDB-ALT)",
            where="the authors' results notebook, long form",
            read_in="code",
            published_setting="Whisper large-v2, original mix; Whisper's native long-form algorithm",
        ),
        Claim(
            name="fewer-inventions",
            says="The cuts more than halve the words invented on the original mix.",
            published="0.82 to 0.31 % (Jam-ALT), 0.88 to 0.12 % (MUSDB-ALT)",
            where="the authors' results notebook, long form, insertions from hallucination",
            read_in="code",
            published_setting="Whisper large-v2, original mix; Whisper's native long-form algorithm",
        ),
        Claim(
            name="best-open-system",
            says="Without training it is the best open system on long-form English songs.",
            published="22.09 % (LyricWhiz, which needs GPT-4: 23.7 %)",
            where="the authors' results notebook, by language; abstract",
            read_in="code",
            published_setting="Jam-ALT English, long runs of insertions and substitutions left out",
        ),
    ),
)

"""A Hugging Face Space: the page of `hf-clap demo`."""

import hf_clap
from hf_clap.demo import build_demo, launch_demo

launch_demo(build_demo(hf_clap.pipeline()), host="0.0.0.0")

"""A page in the browser: drop an image, choose heads or type names, and see what is found, with sliders and files."""

from __future__ import annotations

import argparse

from siglip2_dense.cli.common import load_config
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  siglip2-dense page --head segmentation.safetensors --head depth.safetensors
  siglip2-dense page --names zeroshot_ade20k --encoder siglip2-base-16-256 --prompts "chair, floor, lamp"
  siglip2-dense page --head segmentation.safetensors --names catseg.safetensors --port 8080
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--head", action="append", default=[], metavar="FILE", help="head files, of any encoders")
    parser.add_argument(
        "--names", metavar="CONFIG|FILE", help="a model that is asked for names: a config, or a head file of one"
    )
    parser.add_argument("--prompts", default="person, animal, building, plant, sky, ground", metavar="NAMES",
                        help="names that stand there first")  # fmt: skip
    parser.add_argument("--encoder", metavar="NAME", help="encoder to use instead of that of --names' config")
    parser.add_argument("--weights", metavar="hub|random|PATH", help="where the encoders' weights come from")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines; default this one alone")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="default 7860")
    parser.set_defaults(launcher="none", work_dir=None, cfg_options=[])
    arguments = parser.parse_args(argv)
    if not arguments.head and not arguments.names:
        raise UserError(
            "nothing to show: give trained heads, --head FILE, or a model of names, --names zeroshot_ade20k."
        )

    from siglip2_dense.page import Model, check_free, models_of, serve
    from siglip2_dense.predict.predictor import Predictor

    check_free(arguments.host, arguments.port)  # before models are loaded
    models = models_of(arguments.head, arguments.weights)
    if arguments.names:
        source, weights = arguments.names, arguments.weights
        if not source.endswith(".safetensors"):
            arguments.config = source
            source, weights = load_config(arguments), None  # which has the weights
        predictor = Predictor.open_vocabulary(source, arguments.prompts, encoder_weights=weights)
        models.append(Model(f"names ({predictor.made_by()['encoder']})", predictor, arguments.prompts))
    serve(models, arguments.host, arguments.port)

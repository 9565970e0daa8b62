"""Evaluation of a folder of photos with imgclf's own API; what the row `evaluate-alone` times beside torchvision's."""

from __future__ import annotations

import argparse
import json
import time

from imgclf import Classifier


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder per class")
    parser.add_argument("model", help="a model file")
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()

    classifier = Classifier.load(args.model, precision=args.precision)
    began = time.perf_counter()
    result = classifier.evaluate(args.data, part="all")
    print(json.dumps({"accuracy": result.accuracy, "evaluating": time.perf_counter() - began}))


if __name__ == "__main__":
    main()

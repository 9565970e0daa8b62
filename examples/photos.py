"""Train on a folder of photos, look at the mistakes, and save the model: `python photos.py FOLDER`."""

import sys

from imgclf import Classifier

folder = sys.argv[1] if len(sys.argv) > 1 else "./my_photos"

classifier = Classifier("efficientnet_lite0", size=96).fit(folder, epochs=2)
result = classifier.evaluate()
print(f"{result.accuracy:.1%} of {result.n} images that were never used before")
for row in result.per_class:
    if row.support:  # a class without test images has no figures
        print(f"  {row.name}: precision {row.precision:.1%}, recall {row.recall:.1%}")

source, samples = classifier.samples_of(part="test")
answers = classifier.predict([f"{folder}/{sample.ref}" for sample in samples])
for sample, answer in zip(samples, answers, strict=True):
    if answer.label != sample.label:
        print(f"  {sample.ref} is {sample.label}, called {answer.label} ({answer.confidence:.0%} sure)")

classifier.save("photos.safetensors")

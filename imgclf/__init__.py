"""From a folder of photos to a trained image classifier: one command, or three lines of Python.

    from imgclf import Classifier

    classifier = Classifier().fit("./my_photos")
    print(classifier.evaluate().accuracy, classifier.predict("img.jpg")[0].label)

Importing this loads nothing heavy; each name of `__init__.pyi` is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

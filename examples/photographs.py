"""Print the paths of the two photographs that scikit-learn ships."""

from sklearn.datasets import load_sample_images

print(*load_sample_images().filenames)

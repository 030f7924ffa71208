"""A tracker: a page in the run, RUN/tracking/journal/README.md, with the newest samples and what was logged."""

from PIL import Image

from gencli.trackers import Tracker


class Journal(Tracker):
    def start(self, run):
        run.folder.mkdir(parents=True, exist_ok=True)
        self.page = run.folder / "README.md"
        self.say(f"# {run.name}: {run.config['family']} {'goes on' if run.resumed else 'begins'}\n")

    def log(self, step, values):
        self.say(f"- step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def preview(self, step, preview):
        if preview.picture is not None:
            Image.fromarray(preview.picture).save(self.page.with_name("samples.png"))
            self.say('\n<img src="samples.png">\n')

    def end(self, status):
        self.say(f"\n{status}\n")

    def say(self, line):
        with open(self.page, "a") as file:
            print(line, file=file)

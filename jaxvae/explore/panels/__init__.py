"""The panels of the page, a file each. A panel makes its models of Bokeh, by their names in ``page.html``."""

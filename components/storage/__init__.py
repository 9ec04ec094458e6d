"""Results elsewhere: finished stages and the newest checkpoint of unfinished ones, on a store that several machines share."""

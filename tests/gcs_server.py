"""A server of Google Cloud Storage in memory: `python gcs_server.py PORT`.

It is gcp-storage-emulator and what tensorstore, with which orbax writes arrays, asks of the protocol beyond it:
generations in headers, writes on the condition of a generation, and lists of a range of names.
"""

import json
import signal
import sys
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

BUCKET = 'bucket'


def generation(storage, bucket, name):
    try:
        return storage.get_file_obj(bucket, name)['generation']
    except NotFound:
        return '0'


def name_of(request):
    """Return the name of the object of a request, which stands in its path, its query or its content."""
    if 'object_id' in request.params:
        return request.params['object_id']
    if 'name' in request.query:
        return request.query['name'][0]
    return request.data.get('meta', request.data)['name']


def conditional(handler):
    def handle(request, response, storage):
        wanted = request.query.get('ifGenerationMatch')
        if wanted and generation(storage, request.params['bucket_name'], name_of(request)) != wanted[0]:
            response.status = HTTPStatus.PRECONDITION_FAILED
        else:
            handler(request, response, storage)

    return handle


def download(request, response, storage):
    objects.download(request, response, storage)
    if response.status != HTTPStatus.NOT_FOUND:
        response['x-goog-generation'] = generation(storage, request.params['bucket_name'], request.params['object_id'])


def get(request, response, storage):
    handler = download if request.query.get('alt') == ['media'] else objects.get
    handler(request, response, storage)


def ls(request, response, storage):
    objects.ls(request, response, storage)
    if response.status == HTTPStatus.OK:
        found = json.loads(response._content)
        first, end = (request.query.get(key, [''])[0] for key in ('startOffset', 'endOffset'))
        found['items'] = [item for item in found['items'] if first <= item['name'] and (not end or item['name'] < end)]
        response.json(found)


MENDED = {
    objects.download: download,
    objects.get: conditional(get),
    objects.insert: conditional(objects.insert),
    objects.delete: conditional(objects.delete),
    objects.ls: ls,
}


def main(port):
    server.HANDLERS = [
        (pattern, {method: MENDED.get(handler, handler) for method, handler in handlers.items()})
        for pattern, handlers in server.HANDLERS
    ]
    running = server.create_server('localhost', port, in_memory=True, default_bucket=BUCKET)
    running.start()
    print('ready', flush=True)
    signal.pause()


if __name__ == '__main__':
    main(int(sys.argv[1]))

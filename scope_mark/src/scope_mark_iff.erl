%% SPDX-License-Identifier: Apache-2.0
%% The IFF container of a .beam file: "FOR1", the size, "BEAM", then chunks padded to four bytes
%% (erts/emulator/beam/beam_file.c, iff_init). Chunks keep their order, their padding and their bytes.
-module(scope_mark_iff).
-export([read/1, find/2, header/1, padding/1, inflate/2]).
-export_type([chunk/0]).

%% Id, contents, the padding as it was in the file.
-type chunk() :: {binary(), binary(), binary()}.

-define(MAX_FILE, 128 * 1024 * 1024).

%% The chunks of a file. Throws {bad_file, What} for everything that is not exactly one form.
-spec read(binary()) -> [chunk()].
read(Bin) when byte_size(Bin) > ?MAX_FILE ->
    throw({bad_file, too_large});
read(<<"FOR1", Size:32, "BEAM", Rest/binary>>) when Size =:= byte_size(Rest) + 4 ->
    Chunks = chunks(Rest, []),
    Ids = [Id || {Id, _, _} <- Chunks],
    case Ids -- lists:usort(Ids) of
        [] -> Chunks;
        [Twice | _] -> throw({bad_file, {chunk_twice, Twice}})
    end;
read(<<"FOR1", Size:32, "BEAM", Rest/binary>>) when Size > byte_size(Rest) + 4 ->
    throw({bad_file, truncated});
read(<<"FOR1", _:32, "BEAM", _/binary>>) ->
    throw({bad_file, trailing_bytes});
read(_) ->
    throw({bad_file, no_beam_file}).

chunks(<<>>, Acc) ->
    lists:reverse(Acc);
chunks(<<Id:4/binary, Size:32, Data:Size/binary, Rest/binary>>, Acc) ->
    Pad = min((4 - Size rem 4) rem 4, byte_size(Rest)),
    <<Padding:Pad/binary, Rest1/binary>> = Rest,
    chunks(Rest1, [{Id, Data, Padding} | Acc]);
chunks(_, _) ->
    throw({bad_file, truncated}).

-spec find(binary(), [chunk()]) -> binary() | none.
find(Id, Chunks) ->
    case lists:keyfind(Id, 1, Chunks) of
        {_, Data, _} -> Data;
        false -> none
    end.

-spec header(non_neg_integer()) -> binary().
header(Size) ->
    <<"FOR1", (Size + 4):32, "BEAM">>.

-spec padding(non_neg_integer()) -> binary().
padding(Size) ->
    binary:copy(<<0>>, (4 - Size rem 4) rem 4).

%% What a gzip (WindowBits 31) or zlib (15) stream holds. A stream of a few bytes can stand for gigabytes, so it
%% ends at the largest file that is read.
-spec inflate(binary(), 15 | 31) -> binary().
inflate(Bin, WindowBits) ->
    Z = zlib:open(),
    try
        ok = zlib:inflateInit(Z, WindowBits),
        inflated(Z, zlib:safeInflate(Z, Bin), 0, [])
    catch
        error:_ -> throw({bad_file, compression})
    after
        zlib:close(Z)
    end.

inflated(Z, {Status, Data}, Size0, Acc) ->
    Size = Size0 + iolist_size(Data),
    case Status of
        _ when Size > ?MAX_FILE -> throw({bad_file, too_large});
        continue -> inflated(Z, zlib:safeInflate(Z, []), Size, [Acc, Data]);
        finished -> iolist_to_binary([Acc, Data])
    end.
